"""Classifier-free guidance."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal
from minisd.pipeline import guidance

TASK = """
The guided prediction (Ho and Salimans 2022): from the prediction without the prompt, `scale` times the way to
the one with the prompt.

both (2B, C, h, w): the predictions for the negative prompts, then those for the prompts -> (B, C, h, w).
scale 1 is the prediction with the prompt; 0 the one without.
"""


def guide(both: Tensor, scale: float) -> Tensor:
    uncond, cond = both.chunk(2)
    return uncond + scale * (cond - uncond)


def cases() -> list[Case]:
    both = normal(4, 3, 2, 5, seed=1)
    return [Case(f"scale {scale:g}", (both, scale)) for scale in (7.5, 1.0, 0.0)]


def _other_order(both: Tensor, scale: float) -> Tensor:
    cond, uncond = both.chunk(2)
    return uncond + scale * (cond - uncond)


def _interleaved(both: Tensor, scale: float) -> Tensor:
    return both[::2] + scale * (both[1::2] - both[::2])


def _from_cond(both: Tensor, scale: float) -> Tensor:
    uncond, cond = both.chunk(2)
    return cond + scale * (cond - uncond)


def _wrong_sign(both: Tensor, scale: float) -> Tensor:
    uncond, cond = both.chunk(2)
    return scale * cond + (scale - 1) * uncond


def _weighted(both: Tensor, scale: float) -> Tensor:
    half = len(both) // 2
    return (1 - scale) * both[:half] + scale * both[half:]


def install(solution: Solution) -> AbstractContextManager[None]:
    def combine(uncond: Tensor, cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
        return solution(torch.cat([uncond, cond]), scale)

    return replaced(guidance, "combine", combine)


EXERCISE = Exercise(
    number=10,
    name="guide",
    title="Guidance",
    level=1,
    minutes=5,
    notebook="08",
    task=TASK,
    reference=guide,
    answer=guidance.combine,
    cases=cases,
    mistakes=(
        Mistake("the halves are exchanged; the first one is without the prompt", _other_order),
        Mistake("every second prediction is taken; the halves of the batch belong together", _interleaved),
        Mistake("the way begins at the prediction with the prompt; then scale 1 is guided already", _from_cond),
        Mistake("the sign of the second term is wrong: s c + (s - 1) u should be s c - (s - 1) u", _wrong_sign),
    ),
    hints=(
        "At scale 0 the answer is the first half, at scale 1 the second. What is on the line between them, and beyond?",
        "tensor.chunk(2) gives the two halves of a batch.",
        "A line through two points a and b is a + s (b - a).",
    ),
    install=install,
    variants=(_weighted,),
    atol=1e-4,  # the scale multiplies rounding errors
)
