"""A heat map of a word."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import uniform
from minisd.interpret.attention_maps import AttentionMaps

TASK = """
Where the image looks at a word (Tang et al. 2023): in each layer the attention of every place to the tokens of
the word, added up; resized to one size (bilinear, align_corners=False); and the mean over the layers.

maps: a list with a tensor (h, w, L) for each layer, of different h and w: the attention of each place to L
tokens.
first, count: where the tokens of the word are, counted from 0 with the start token: first, first + 1, ...
size: (height, width) of the result -> (height, width).
"""


def heat_map(maps: list[Tensor], first: int, count: int, size: tuple[int, int]) -> Tensor:
    summed = (each[:, :, first : first + count].sum(-1) for each in maps)
    return torch.stack([_resized(each, size) for each in summed]).mean(0)


def cases() -> list[Case]:
    def of(sides: list[tuple[int, int]], length: int) -> list[Tensor]:
        scores = [5 * uniform(*side, length, seed=k) for k, side in enumerate(sides)]
        return [each.softmax(-1) for each in scores]

    return [
        Case("one token", (of([(4, 6), (2, 3)], 9), 3, 1, (8, 12))),
        Case("a word of three tokens", (of([(5, 4), (3, 2), (7, 5)], 11), 2, 3, (7, 5))),
    ]


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _one_token(maps: list[Tensor], first: int, count: int, size: tuple[int, int]) -> Tensor:
    return heat_map(maps, first, 1, size)


def _start_forgotten(maps: list[Tensor], first: int, count: int, size: tuple[int, int]) -> Tensor:
    return heat_map(maps, first + 1, count, size)


def _nearest(maps: list[Tensor], first: int, count: int, size: tuple[int, int]) -> Tensor:
    summed = (each[:, :, first : first + count].sum(-1)[None, None] for each in maps)
    return torch.stack([F.interpolate(each, size=size, mode="nearest")[0, 0] for each in summed]).mean(0)


def _summed_layers(maps: list[Tensor], first: int, count: int, size: tuple[int, int]) -> Tensor:
    return heat_map(maps, first, count, size) * len(maps)


def _largest_layer(maps: list[Tensor], first: int, count: int, size: tuple[int, int]) -> Tensor:
    return heat_map([max(maps, key=Tensor.numel)], first, count, size)


def _resized_first(maps: list[Tensor], first: int, count: int, size: tuple[int, int]) -> Tensor:
    """Resizing is linear, so the order does not matter."""
    channels = [F.interpolate(each.permute(2, 0, 1)[None], size=size, mode="bilinear")[0] for each in maps]
    return sum(each[first : first + count].sum(0) for each in channels) / len(maps)  # type: ignore[return-value]


EXERCISE = Exercise(
    number=16,
    name="heat_map",
    title="A heat map of a word",
    level=3,
    minutes=30,
    notebook="21",
    task=TASK,
    reference=heat_map,
    answer=AttentionMaps.heat_map,
    cases=cases,
    mistakes=(
        Mistake("only the first token of the word counts; add up all of them", _one_token),
        Mistake("the tokens begin one place later; `first` counts the start token already", _start_forgotten),
        Mistake("the tokens are resized by the nearest place; expected bilinear", _nearest),
        Mistake("the layers are added up; expected their mean", _summed_layers),
        Mistake("only the layer with the most places is used; expected the mean over all", _largest_layer),
    ),
    hints=(
        "Three steps for each layer: pick and add tokens, resize, and then one mean over the layers.",
        "F.interpolate wants (B, C, h, w); add two axes and remove them afterwards.",
        "Layers have different sizes, so they can be stacked only after resizing.",
    ),
    needs=("attention",),
    variants=(_resized_first,),
)
