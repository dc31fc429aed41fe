"""The target of guided distillation."""

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import normal
from minisd.training.guidance_distillation import guided_prediction

TASK = """
What a student of guided distillation should predict (Meng et al. 2023): the guided prediction of its teacher,
with a scale of its own for each image of the batch.

uncond and cond (B, C, h, w): the teacher's predictions; scales (B,) -> (B, C, h, w).
"""


def guided_target(uncond: Tensor, cond: Tensor, scales: Tensor) -> Tensor:
    return torch.lerp(uncond, cond, scales.view(-1, 1, 1, 1))


def cases() -> list[Case]:
    def of(count: int, *scales: float) -> tuple[Tensor, ...]:
        return normal(count, 3, 4, count, seed=1), normal(count, 3, 4, count, seed=2), torch.tensor(scales)

    return [Case("two scales", of(2, 1.5, 7.5)), Case("three, one of them 1", of(3, 1.0, 0.0, 4.0))]


def _along_width(uncond: Tensor, cond: Tensor, scales: Tensor) -> Tensor:
    return uncond + scales * (cond - uncond)


def _first_scale(uncond: Tensor, cond: Tensor, scales: Tensor) -> Tensor:
    return uncond + scales[0] * (cond - uncond)


def _paper_scale(uncond: Tensor, cond: Tensor, scales: Tensor) -> Tensor:
    w = scales.view(-1, 1, 1, 1)
    return (1 + w) * cond - w * uncond


def _exchanged(uncond: Tensor, cond: Tensor, scales: Tensor) -> Tensor:
    return guided_target(cond, uncond, scales)


def _one_by_one(uncond: Tensor, cond: Tensor, scales: Tensor) -> Tensor:
    return torch.stack([(1 - s) * u + s * c for u, c, s in zip(uncond, cond, scales.tolist(), strict=True)])


EXERCISE = Exercise(
    number=22,
    name="guided_target",
    title="The target of guided distillation",
    level=1,
    minutes=10,
    notebook="28",
    task=TASK,
    reference=guided_target,
    answer=guided_prediction,
    cases=cases,
    mistakes=(
        Mistake("the scales are spread over the width of the images; each image has one", _along_width),
        Mistake("all images get the scale of the first one", _first_scale),
        Mistake("this is the paper's w, which is one less than the scale", _paper_scale),
        Mistake("the two predictions are exchanged", _exchanged),
    ),
    hints=(
        "For each image by itself: scale 1 gives cond, scale 0 gives uncond.",
        "It is guidance, with a number for each row.",
        "scales needs three more axes.",
    ),
    needs=("guide",),
    variants=(_one_by_one,),
)
