"""Group normalisation."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal
from minisd.models.layers import GroupNorm

TASK = """
Group normalisation (Wu and He 2018): the channels are cut into groups of neighbours; in each image each group
gets mean 0 and variance 1, over its channels and all places. Then every channel is multiplied by its weight,
and its bias added.

x (B, C, H, W); weight and bias (C,); eps is added to the variance, which is the mean square deviation -> (B, C,
H, W).
"""


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.group_norm(x, groups, weight, bias, eps)


def cases() -> list[Case]:
    def of(x: Tensor, groups: int, eps: float) -> tuple[object, ...]:
        return x, groups, normal(x.shape[1], seed=8), normal(x.shape[1], seed=9), eps

    uneven = normal(2, 6, 3, 5, seed=1) * torch.tensor([1.0, 2, 3, 4, 5, 6]).view(1, 6, 1, 1) + 1
    faint = 0.01 * normal(2, 4, 3, 5, seed=2)
    return [Case("three groups of two channels", of(uneven, 3, 1e-6)), Case("faint input", of(faint, 2, 1e-4))]


def _normed(x: Tensor, dims: tuple[int, ...], eps: float, correction: int = 0) -> Tensor:
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, correction=correction, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def _affine(x: Tensor, like: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.reshape(like.shape) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def _by_hand(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _affine(_normed(x.reshape(len(x), groups, -1), (2,), eps), x, weight, bias)


def _per_channel(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _affine(_normed(x, (2, 3), eps), x, weight, bias)


def _per_layer(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _affine(_normed(x, (1, 2, 3), eps), x, weight, bias)


def _over_batch(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _affine(_normed(x.reshape(len(x), groups, -1), (0, 2), eps), x, weight, bias)


def _unbiased(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _affine(_normed(x.reshape(len(x), groups, -1), (2,), eps, correction=1), x, weight, bias)


def _eps_on_deviation(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    parts = x.reshape(len(x), groups, -1)
    mean, deviation = parts.mean(2, keepdim=True), parts.std(2, correction=0, keepdim=True)
    return _affine((parts - mean) / (deviation + eps), x, weight, bias)


def _fixed_eps(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _by_hand(x, groups, weight, bias, 1e-5)


def _strided(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    parts = x.unflatten(1, (-1, groups)).transpose(1, 2)
    return _affine(_normed(parts, (2, 3, 4), eps).transpose(1, 2), x, weight, bias)


def install(solution: Solution) -> AbstractContextManager[None]:
    def forward(self: GroupNorm, x: Tensor) -> Tensor:
        return solution(x, self.num_groups, self.weight, self.bias, self.eps)

    return replaced(GroupNorm, "forward", forward)


EXERCISE = Exercise(
    number=3,
    name="group_norm",
    title="Group normalisation",
    level=2,
    minutes=15,
    notebook="03",
    task=TASK,
    reference=group_norm,
    answer=GroupNorm,
    cases=cases,
    mistakes=(
        Mistake("each channel is normalised alone; a group shares one mean and one variance", _per_channel),
        Mistake("all channels are normalised together; expected one mean and variance for each group", _per_layer),
        Mistake("the mean is taken over the batch, too; each image has its own", _over_batch),
        Mistake("the variance is divided by N - 1 (unbiased); expected N", _unbiased),
        Mistake("eps is added to the deviation; expected to the variance, under the root", _eps_on_deviation),
        Mistake("eps is fixed to 1e-5; use the argument", _fixed_eps),
        Mistake("the groups are every so many channels; expected neighbours", _strided),
    ),
    hints=(
        "Over which axes is the mean taken, if (B, C, H, W) is seen as (B, groups, C / groups, H, W)?",
        "x.reshape(B, groups, -1) has all numbers of a group in its last axis.",
        "torch.var divides by N - 1 unless correction=0.",
    ),
    install=install,
    variants=(_by_hand,),
    solution=_by_hand,
    forbidden=("torch.nn.functional.group_norm", "torch.group_norm", "torch.native_group_norm"),
)
