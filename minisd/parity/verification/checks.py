"""A fact is a number that a model must give; a check measures it and compares."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from minisd.errors import InputError, MinisdError
from minisd.parity.verification.measures import PICTURES, Measure, Subject

MODELS = {  # the models of a family that shapes cannot tell apart
    "SD 1.x": ("v1-1", "v1-2", "v1-3", "v1-4", "v1-5"),
    "SD 2.x": ("v2-base", "v2", "v2-1-base", "v2-1"),
}


@dataclass(frozen=True)
class Fact:
    """Numbers that a model must give, and how to measure them.

    tolerance: of each number, in its own units; half_tolerance: for weights that went through float16.
    at_least: more is fine too. model: the only one of its family that the fact holds for. needs: a picture
    that the user has to give. denoises: takes minutes.
    """

    name: str
    families: tuple[str, ...]
    measure: Measure
    expected: tuple[float, ...]
    tolerance: float = 0.0
    half_tolerance: float | None = None
    at_least: bool = False
    model: str | None = None
    needs: Literal["golden", "picture"] | None = None
    denoises: bool = False


@dataclass(frozen=True)
class Result:
    """The verdict on a fact: expected and got where they differ most, or a note that says why not."""

    name: str
    verdict: Literal["pass", "FAIL", "skipped"]
    expected: float | None = None
    got: float | None = None
    difference: float | None = None
    tolerance: float | None = None
    note: str = ""


def verify(
    subject: Subject, facts: Sequence[Fact], family: str, model: str | None = None, quick: bool = False
) -> Iterator[Result]:
    """The facts of a family, one by one as they are measured; `quick` leaves out what needs denoising.

    model: which one of the family it is, None if that is not known. Raises InputError, before any work, for a
    family of which nothing is known and for a model that is not of the family.
    """
    relevant = [fact for fact in facts if family in fact.families]
    if not relevant:
        known = ", ".join(sorted({name for fact in facts for name in fact.families}))
        raise InputError(f"nothing is known about models of the family {family!r}, only about {known}.")
    if model is not None and model not in MODELS.get(family, ()):
        choices = ", ".join(MODELS.get(family, ())) or "none to choose from"
        raise InputError(f"the model is said to be {model!r}, but it is {family}: {choices}.")
    half = subject.half_weights
    return (_check(fact, subject, model, quick, half) for fact in relevant)


def _check(fact: Fact, subject: Subject, model: str | None, quick: bool, half: bool) -> Result:
    if fact.model is not None and fact.model != model:
        is_what = "which model this is, is not known" if model is None else f"this is {model}"
        return Result(fact.name, "skipped", note=f"holds for {fact.model}; {is_what}")
    if fact.denoises and quick:
        return Result(fact.name, "skipped", note="needs denoising")
    if fact.needs is not None and getattr(subject, fact.needs) is None:
        return Result(fact.name, "skipped", note=f"needs --{fact.needs} {PICTURES[fact.needs].name}")
    tolerance = fact.half_tolerance if half and fact.half_tolerance is not None else fact.tolerance
    try:
        with torch.no_grad():
            got = [float(value) for value in fact.measure(subject)]
    except (MinisdError, IndexError) as error:
        return Result(fact.name, "FAIL", tolerance=tolerance, note=str(error))
    if len(got) != len(fact.expected):
        note = f"{len(got)} numbers, expected {len(fact.expected)}"
        return Result(fact.name, "FAIL", tolerance=tolerance, note=note)
    if not all(map(math.isfinite, got)):
        return Result(fact.name, "FAIL", tolerance=tolerance, note="NaN or infinity among the numbers")
    pairs = list(zip(fact.expected, got, strict=True))
    gaps = [max(want - have, 0.0) if fact.at_least else abs(want - have) for want, have in pairs]
    worst = gaps.index(max(gaps))
    verdict: Literal["pass", "FAIL"] = "pass" if gaps[worst] <= tolerance else "FAIL"
    return Result(fact.name, verdict, *pairs[worst], gaps[worst], tolerance)
