"""Official weights against the numbers that are known of them; `minisd verify` shows the outcome."""

from minisd.parity.verification.checks import MODELS, Fact, Result, verify
from minisd.parity.verification.facts import FACTS
from minisd.parity.verification.measures import Run, Subject, known_picture

__all__ = ["FACTS", "MODELS", "Fact", "Result", "Run", "Subject", "known_picture", "verify"]
