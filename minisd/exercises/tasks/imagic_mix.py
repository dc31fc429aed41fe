"""Imagic's interpolation."""

import torch
from torch import Tensor

from minisd.editing.imagic import Edit
from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import normal

TASK = """
The text states that Imagic draws from (Kawar et al. 2022): with eta = 0 those that were optimised for the given
image, with eta = 1 those of the wanted prompt, on the straight line through both.

optimised and wanted (1, L, width); etas: a list of numbers -> (number of etas, L, width).
"""


def imagic_mix(optimised: Tensor, wanted: Tensor, etas: list[float]) -> Tensor:
    return torch.cat([torch.lerp(optimised, wanted, eta) for eta in etas])


def cases() -> list[Case]:
    a, b = normal(1, 5, 7, seed=1), normal(1, 5, 7, seed=2)
    return [Case("three etas", (a, b, [0.0, 0.3, 1.0])), Case("beyond the prompt", (a, b, [1.2]))]


def _exchanged(optimised: Tensor, wanted: Tensor, etas: list[float]) -> Tensor:
    return imagic_mix(wanted, optimised, etas)


def _clamped(optimised: Tensor, wanted: Tensor, etas: list[float]) -> Tensor:
    return imagic_mix(optimised, wanted, [min(max(eta, 0.0), 1.0) for eta in etas])


def _added(optimised: Tensor, wanted: Tensor, etas: list[float]) -> Tensor:
    return torch.cat([optimised + eta * wanted for eta in etas])


def _in_one_piece(optimised: Tensor, wanted: Tensor, etas: list[float]) -> Tensor:
    eta = torch.tensor(etas).view(-1, 1, 1)
    return eta * wanted + (1 - eta) * optimised


EXERCISE = Exercise(
    number=23,
    name="imagic_mix",
    title="Imagic's interpolation",
    level=1,
    minutes=10,
    notebook="26",
    task=TASK,
    reference=imagic_mix,
    answer=Edit.states,
    cases=cases,
    mistakes=(
        Mistake("eta is counted from the wrong end; 0 is the given image", _exchanged),
        Mistake("eta is limited to 0..1; the line goes on beyond both ends", _clamped),
        Mistake("the wanted states are added; move towards them", _added),
    ),
    hints=(
        "At eta 0 the result is the first, at eta 1 the second. What lies between, and beyond?",
        "One row for each eta: torch.cat of a list, or a view with more axes.",
        "A line through two points a and b is a + eta (b - a).",
    ),
    variants=(_in_one_piece,),
)
