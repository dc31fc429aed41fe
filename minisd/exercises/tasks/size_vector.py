"""SDXL's size vector."""

from collections.abc import Callable

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import normal
from minisd.models.unet import sinusoids
from minisd.pipeline.sdxl_sizes import append_sizes

Pair = tuple[int, int]
Waves = Callable[[Tensor, int], Tensor]

TASK = """
What SDXL's UNet reads beside the text (Podell et al. 2023): the pooled text states, and six numbers about the
image as waves: height and width of the original, top and left of the crop, height and width of the target, in
this order. Each number becomes `width` waves: `waves(numbers, width)`, numbers (N,) -> (N, width).

pooled (B, P); original, crop and target: pairs of numbers, the same for all rows -> (B, P + 6 width).
"""


def size_vector(pooled: Tensor, original: Pair, crop: Pair, target: Pair, waves: Waves, width: int) -> Tensor:
    numbers = torch.tensor([*original, *crop, *target], dtype=torch.float32)
    return torch.cat([pooled, waves(numbers, width).flatten().expand(len(pooled), -1)], 1)


def cases() -> list[Case]:
    return [
        Case("a crop", (normal(2, 5, seed=1), (900, 700), (30, 10), (1024, 768), sinusoids, 8)),
        Case("one row", (normal(1, 3, seed=2), (512, 640), (0, 4), (256, 128), sinusoids, 4)),
    ]


def _width_first(pooled: Tensor, original: Pair, crop: Pair, target: Pair, waves: Waves, width: int) -> Tensor:
    return size_vector(pooled, original[::-1], crop[::-1], target[::-1], waves, width)


def _crop_last(pooled: Tensor, original: Pair, crop: Pair, target: Pair, waves: Waves, width: int) -> Tensor:
    return size_vector(pooled, original, target, crop, waves, width)


def _pooled_last(pooled: Tensor, original: Pair, crop: Pair, target: Pair, waves: Waves, width: int) -> Tensor:
    whole, count = size_vector(pooled, original, crop, target, waves, width), pooled.shape[1]
    return torch.cat([whole[:, count:], whole[:, :count]], 1)


def _target_first(pooled: Tensor, original: Pair, crop: Pair, target: Pair, waves: Waves, width: int) -> Tensor:
    return size_vector(pooled, target, crop, original, waves, width)


def _row_by_row(pooled: Tensor, original: Pair, crop: Pair, target: Pair, waves: Waves, width: int) -> Tensor:
    parts = [waves(torch.tensor([float(number)]), width)[0] for pair in (original, crop, target) for number in pair]
    return torch.stack([torch.cat([row, *parts]) for row in pooled])


EXERCISE = Exercise(
    number=25,
    name="size_vector",
    title="SDXL's size vector",
    level=2,
    minutes=15,
    notebook="14",
    task=TASK,
    reference=size_vector,
    answer=append_sizes,
    cases=cases,
    mistakes=(
        Mistake("the widths come before the heights", _width_first),
        Mistake("the crop comes last; its place is in the middle", _crop_last),
        Mistake("the text comes last; it is the first part", _pooled_last),
        Mistake("original and target are exchanged", _target_first),
    ),
    hints=(
        "Six numbers, in the order of the arguments, each pair as it is given.",
        "waves(...) of six numbers is (6, width); flatten it to one row.",
        "All rows get the same waves: expand, then concatenate with the text.",
    ),
    needs=("timestep_embedding",),
    variants=(_row_by_row,),
)
