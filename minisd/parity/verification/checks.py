"""Facts, which are the published numbers of a model, and checks, which measure a model and compare."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from minisd.errors import InputError, MinisdError
from minisd.parity.verification.measures import REFERENCE_IMAGES, Measure, ModelUnderTest

MODELS = {  # the models of a family, which have the same shapes
    "SD 1.x": ("v1-1", "v1-2", "v1-3", "v1-4", "v1-5"),
    "SD 2.x": ("v2-base", "v2", "v2-1-base", "v2-1"),
}


@dataclass(frozen=True)
class Fact:
    """The expected numbers of a model, and how to measure them.

    tolerance: the allowed difference of each number; half_tolerance: for weights that were stored in float16.
    at_least: larger numbers pass, too. model: the only model of the family with these numbers. needs: an image that
    the user must provide. denoises: the measurement takes minutes. tokenizes: it reads the vocabulary;
    denoising does, too.
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
    tokenizes: bool = False


@dataclass(frozen=True)
class Result:
    """The verdict on a fact: the expected and measured number that differ most, or a note."""

    name: str
    verdict: Literal["pass", "FAIL", "skipped"]
    expected: float | None = None
    got: float | None = None
    difference: float | None = None
    tolerance: float | None = None
    note: str = ""


def verify(
    tested: ModelUnderTest, facts: Sequence[Fact], family: str, model: str | None = None, quick: bool = False
) -> Iterator[Result]:
    """Check the facts of a family and yield the results one by one; `quick` skips facts that need denoising.

    model: the name of the model within the family; None if unknown. Raises InputError, before any work, for a family
    without facts and for a model of another family.
    """
    relevant = [fact for fact in facts if family in fact.families]
    if not relevant:
        known = ", ".join(sorted({name for fact in facts for name in fact.families}))
        raise InputError(f"the model is of the family {family!r}, expected one of {known}.")
    if model is not None and model not in MODELS.get(family, ()):
        choices = ", ".join(MODELS.get(family, ())) or "no names"
        raise InputError(f"the model is named {model!r}, but it is {family}: {choices}.")
    half = tested.half_weights
    return (_check(fact, tested, model, quick, half) for fact in relevant)


def _check(fact: Fact, tested: ModelUnderTest, model: str | None, quick: bool, half: bool) -> Result:
    if fact.model is not None and fact.model != model:
        this = "the name of this model is not known" if model is None else f"this is {model}"
        return Result(fact.name, "skipped", note=f"only for {fact.model}; {this}")
    if fact.denoises and quick:
        return Result(fact.name, "skipped", note="needs denoising")
    if fact.needs is not None and getattr(tested, fact.needs) is None:
        return Result(fact.name, "skipped", note=f"needs --{fact.needs} {REFERENCE_IMAGES[fact.needs].name}")
    if (fact.tokenizes or fact.denoises) and not tested.has_vocabulary:
        return Result(fact.name, "skipped", note="needs the vocabulary: --tokenizer FOLDER")
    tolerance = fact.half_tolerance if half and fact.half_tolerance is not None else fact.tolerance
    try:
        with torch.no_grad():
            got = [float(value) for value in fact.measure(tested)]
    except (MinisdError, IndexError) as error:
        return Result(fact.name, "FAIL", tolerance=tolerance, note=str(error))
    if len(got) != len(fact.expected):
        note = f"got {len(got)} numbers, expected {len(fact.expected)}"
        return Result(fact.name, "FAIL", tolerance=tolerance, note=note)
    if not all(map(math.isfinite, got)):
        return Result(fact.name, "FAIL", tolerance=tolerance, note="the numbers contain NaN or infinity")
    pairs = list(zip(fact.expected, got, strict=True))
    gaps = [max(want - have, 0.0) if fact.at_least else abs(want - have) for want, have in pairs]
    worst = gaps.index(max(gaps))
    verdict: Literal["pass", "FAIL"] = "pass" if gaps[worst] <= tolerance else "FAIL"
    return Result(fact.name, verdict, *pairs[worst], gaps[worst], tolerance)
