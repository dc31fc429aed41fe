"""A step of DDIM."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal
from minisd.schedulers import DDIM, Grid
from minisd.schedulers.base import Step

TASK = """
One step of DDIM without new noise (Song et al. 2021, eq. 12), for a model that predicts v.

From v follow the clean latents and the noise (Salimans and Ho 2022), with a = alpha_bar:
    x0 = sqrt(a) x - sqrt(1 - a) v        eps = sqrt(a) v + sqrt(1 - a) x
Mix both again at the next level, alpha_bar_prev. x and v (B, C, h, w), the levels are numbers -> (B, C, h, w).
"""


def ddim_step(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    a, b = alpha_bar, alpha_bar_prev
    x0 = a**0.5 * x - (1 - a) ** 0.5 * v
    eps = a**0.5 * v + (1 - a) ** 0.5 * x
    return b**0.5 * x0 + (1 - b) ** 0.5 * eps


def cases() -> list[Case]:
    x, v = normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    levels = {"middle of the run": (0.3, 0.45), "first step, from pure noise": (0.0, 0.1), "last step": (0.9, 1.0)}
    return [Case(label, (x, v, *pair)) for label, pair in levels.items()]


def _levels_exchanged(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    return ddim_step(x, v, alpha_bar_prev, alpha_bar)


def _old_noise(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    a, b = alpha_bar, alpha_bar_prev
    x0 = a**0.5 * x - (1 - a) ** 0.5 * v
    return b**0.5 * x0 + (1 - b) ** 0.5 * v


def _no_noise(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    return alpha_bar**0.5 * x - (1 - alpha_bar) ** 0.5 * v


def _no_roots(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    a, b = alpha_bar, alpha_bar_prev
    x0 = a**0.5 * x - (1 - a) ** 0.5 * v
    return b * x0 + (1 - b) * (a**0.5 * v + (1 - a) ** 0.5 * x)


def _divided(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    """As for a model that predicts the noise."""
    a, b = alpha_bar, alpha_bar_prev
    x0 = (x - (1 - a) ** 0.5 * v) / a**0.5
    return b**0.5 * x0 + (1 - b) ** 0.5 * v


def _as_rotation(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    """The angle between signal and noise becomes smaller."""
    before, after = (
        torch.acos(torch.tensor(level, dtype=torch.float64).sqrt()) for level in (alpha_bar, alpha_bar_prev)
    )
    turn = (before - after).to(x)
    return turn.cos() * x - turn.sin() * v


def install(solution: Solution) -> AbstractContextManager[None]:
    def step(self: DDIM, grid: Grid, i: int, x: Tensor, output: Tensor, memory: object, draw: object) -> Step:
        a = self.schedule.alpha_bar(grid.source[i])
        b = self.schedule.alpha_bar(grid.previous[i], 1.0 if self.set_alpha_to_one else self.schedule.alpha_bar(0))
        x0, eps = self.schedule.x0_and_eps(x, output, a)
        return Step(solution(x, a**0.5 * eps - (1 - a) ** 0.5 * x0, a, b), x0, None)

    return replaced(DDIM, "_step", step)


EXERCISE = Exercise(
    number=11,
    name="ddim_step",
    title="A step of DDIM",
    level=3,
    minutes=20,
    notebook="05",
    task=TASK,
    reference=ddim_step,
    answer=DDIM._step,
    cases=cases,
    mistakes=(
        Mistake("the step goes back: the two levels are exchanged, or the sign of v is wrong", _levels_exchanged),
        Mistake("v is mixed in as if it were the noise; compute the noise from it", _old_noise),
        Mistake("this is x0, the end of the run; mix it with the noise at the next level", _no_noise),
        Mistake("the shares are used without their square roots", _no_roots),
        Mistake("this is the formula for a model that predicts the noise; this one predicts v", _divided),
    ),
    hints=(
        "First x0 and eps, then the same mixture as for adding noise, at the other level.",
        "At alpha_bar_prev = 1 the result is x0 itself.",
        "sqrt(alpha_bar_prev) x0 + sqrt(1 - alpha_bar_prev) times what?",
    ),
    install=install,
    run=lambda sd: {"scheduler": DDIM.in_place_of(sd.scheduler)},
    needs=("add_noise",),
    variants=(_as_rotation,),
)
