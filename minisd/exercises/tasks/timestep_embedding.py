"""Sinusoids of the timestep."""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import uniform
from minisd.models import unet

TASK = """
Numbers as waves, which a network can tell apart: cosines, then sines, of width / 2 frequencies.

The frequencies fall from 1 to almost 1/10000: frequency i is 10000^(-i / half), for i = 0 to half - 1, half =
width / 2.
values (N,) -> (N, width), float32.
"""


def timestep_embedding(values: Tensor, width: int) -> Tensor:
    return unet.sinusoids(values, width)


def cases() -> list[Case]:
    few = torch.tensor([0.0, 1.0, 17.0, 981.0])
    return [Case("four timesteps", (few, 14)), Case("a wide one", (uniform(5, seed=1, high=1000), 128))]


def _angles(values: Tensor, width: int, last: int = 0) -> Tensor:
    half = width // 2
    return values.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / (half - last))


def _sines_first(values: Tensor, width: int) -> Tensor:
    angles = _angles(values, width)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _half_minus_one(values: Tensor, width: int) -> Tensor:
    angles = _angles(values, width, last=1)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _interleaved(values: Tensor, width: int) -> Tensor:
    angles = _angles(values, width)
    return torch.stack([angles.cos(), angles.sin()], 2).flatten(1)


def _over_width(values: Tensor, width: int) -> Tensor:
    half = width // 2
    angles = values.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / width)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _by_power(values: Tensor, width: int) -> Tensor:
    half = width // 2
    frequencies = torch.tensor([10000 ** (-i / half) for i in range(half)])
    angles = torch.outer(values.float(), frequencies)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def install(solution: Solution) -> AbstractContextManager[None]:
    plain = unet.sinusoids

    def sinusoids(values: Tensor, width: int, original_ddpm: bool = False) -> Tensor:
        return plain(values, width, True) if original_ddpm else solution(values, width)

    return replaced(unet, "sinusoids", sinusoids)


EXERCISE = Exercise(
    number=2,
    name="timestep_embedding",
    title="The timestep as waves",
    level=1,
    minutes=10,
    notebook="07",
    task=TASK,
    reference=timestep_embedding,
    answer=unet.sinusoids,
    cases=cases,
    mistakes=(
        Mistake("sines come first; Stable Diffusion has the cosines first", _sines_first),
        Mistake("the exponent is divided by half - 1; that is the first DDPM's form, here it is half", _half_minus_one),
        Mistake("cosines and sines alternate; all cosines come first, then all sines", _interleaved),
        Mistake("the exponent is divided by width; expected half of it", _over_width),
    ),
    hints=(
        "Each frequency has two columns: its cosine is in the left half of a row, its sine in the right half.",
        "The exponents are -i / half; 10000 to a power is exp(power * log(10000)).",
        "values[:, None] * frequencies is (N, half).",
    ),
    install=install,
    variants=(_by_power,),
    solution=_by_power,
    atol=1e-4,  # angles of up to 1000 lose digits in float32
)
