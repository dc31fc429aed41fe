"""Dynamic thresholding."""

from torch import Tensor

from minisd.exercises.exercise import Case, Exercise
from minisd.exercises.inputs import normal

TEXT = """
Dynamic thresholding (Saharia et al. 2022): strong guidance drives the clean image x0 out of -1..1. For each
image of the batch on its own, over all of its channels and places:

1. s is the quantile `share` of the absolute values, with linear interpolation, as torch.quantile has it. If
   it is less than 1, s is 1.
2. Values are limited to -s..s, and then divided by s.

x0 (B, C, h, w), share between 0 and 1 -> (B, C, h, w).
"""


def dynamic_threshold(x0: Tensor, share: float) -> Tensor:
    raise NotImplementedError


def cases() -> list[Case]:
    sizes = normal(3, 3, 4, 5, seed=1)
    sizes = sizes * sizes.new_tensor([0.2, 1.5, 4.0]).view(3, 1, 1, 1)
    return [
        Case("a faint, a strong and a very strong image", (sizes, 0.9)),
        Case("a small share", (2 * normal(2, 3, 5, 4, seed=2), 0.6)),
        Case("one image of another memory layout", (3 * normal(1, 4, 3, 5, seed=3).transpose(2, 3), 0.8)),
    ]


TASK = Exercise(
    number=105,
    name="dynamic_threshold",
    title="Dynamic thresholding",
    level=2,
    minutes=15,
    notebook="08",
    task=TEXT,
    reference=dynamic_threshold,
    answer=None,
    cases=cases,
    mistakes=(),
    hints=(
        "A faint image comes back as it is.",
        "x0.flatten(1) has all numbers of an image in one row.",
        "torch.clamp takes tensors as limits, of a shape such as (B, 1, 1, 1).",
    ),
)
