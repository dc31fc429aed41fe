"""The target of progressive distillation."""

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import normal
from minisd.training.distillation import two_step_target

TASK = """
The clean latents that a student should predict at z, so that one step of DDIM leads from z to z_end, where its
teacher is after two steps (Salimans and Ho 2022). With z = sqrt(a) x + sqrt(1 - a) eps, and b in place of a at
the end.

z and z_end (B, C, h, w), at the noise levels alpha_bar and alpha_bar_end (numbers) -> (B, C, h, w).
"""


def progressive_target(z: Tensor, z_end: Tensor, alpha_bar: float, alpha_bar_end: float) -> Tensor:
    ratio = ((1 - alpha_bar_end) / (1 - alpha_bar)) ** 0.5
    return (z_end - ratio * z) / (alpha_bar_end**0.5 - ratio * alpha_bar**0.5)


def cases() -> list[Case]:
    z, z_end = normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    levels = {"in the middle": (0.3, 0.6), "from pure noise": (0.0, 0.2), "to the end": (0.8, 1.0)}
    return [Case(label, (z, z_end, *pair)) for label, pair in levels.items()]


def _end(z: Tensor, z_end: Tensor, alpha_bar: float, alpha_bar_end: float) -> Tensor:
    return z_end


def _denominator_forgotten(z: Tensor, z_end: Tensor, alpha_bar: float, alpha_bar_end: float) -> Tensor:
    ratio = ((1 - alpha_bar_end) / (1 - alpha_bar)) ** 0.5
    return z_end - ratio * z


def _no_roots(z: Tensor, z_end: Tensor, alpha_bar: float, alpha_bar_end: float) -> Tensor:
    ratio = (1 - alpha_bar_end) / (1 - alpha_bar)
    return (z_end - ratio * z) / (alpha_bar_end - ratio * alpha_bar)


def _ratio_inverted(z: Tensor, z_end: Tensor, alpha_bar: float, alpha_bar_end: float) -> Tensor:
    ratio = ((1 - alpha_bar) / (1 - alpha_bar_end)) ** 0.5
    return (z_end - ratio * z) / (alpha_bar_end**0.5 - ratio * alpha_bar**0.5)


def _signal_ratio(z: Tensor, z_end: Tensor, alpha_bar: float, alpha_bar_end: float) -> Tensor:
    """Solved for the noise."""
    ratio = (alpha_bar_end / alpha_bar) ** 0.5
    return (z_end - ratio * z) / ((1 - alpha_bar_end) ** 0.5 - ratio * (1 - alpha_bar) ** 0.5)


def _by_linear_equations(z: Tensor, z_end: Tensor, alpha_bar: float, alpha_bar_end: float) -> Tensor:
    """Two equations, for x0 and the noise."""
    levels = torch.tensor([[a**0.5, (1 - a) ** 0.5] for a in (alpha_bar, alpha_bar_end)], dtype=torch.float64)
    both = torch.stack([z, z_end]).double().flatten(1)
    return torch.linalg.solve(levels, both)[0].view_as(z).to(z)


EXERCISE = Exercise(
    number=21,
    name="progressive_target",
    title="The target of progressive distillation",
    level=3,
    minutes=25,
    notebook="27",
    task=TASK,
    reference=progressive_target,
    answer=two_step_target,
    cases=cases,
    mistakes=(
        Mistake("z_end is where the step ends; the student predicts clean latents that lead there", _end),
        Mistake("the denominator is missing", _denominator_forgotten),
        Mistake("the shares are used without their square roots", _no_roots),
        Mistake("the ratio of the noises is upside down; the end has less", _ratio_inverted),
        Mistake("the equations are solved for the noise; asked for are the clean latents", _signal_ratio),
    ),
    hints=(
        "Two unknowns, x0 and eps, and two equations: one for z, one for z_end.",
        "Multiply the first equation by sqrt(1 - b) / sqrt(1 - a) and subtract: eps vanishes.",
        "What is left is x0 times a number.",
    ),
    needs=("ddim_step",),
    variants=(_by_linear_equations,),
)
