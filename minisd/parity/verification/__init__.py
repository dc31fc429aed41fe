"""Comparison of official weights with published numbers, for `minisd verify`."""

from minisd.parity.verification.checks import MODELS, Fact, Result, verify
from minisd.parity.verification.facts import FACTS
from minisd.parity.verification.measures import ModelUnderTest, Run, open_reference_image

__all__ = ["FACTS", "MODELS", "Fact", "ModelUnderTest", "Result", "Run", "open_reference_image", "verify"]
