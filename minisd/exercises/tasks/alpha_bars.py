"""The noise schedule of Stable Diffusion."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import whole
from minisd.schedulers import NoiseSchedule

TASK = """
The share of the image in the variance at each of `steps` timesteps. beta is the share of the variance that a
timestep replaces by noise; its square root grows evenly from sqrt(first) to sqrt(last). What is left after t
timesteps is the product of 1 - beta up to t.

first, last: the betas of the first and the last timestep -> (steps,), float64.
"""


def alpha_bars(first: float, last: float, steps: int) -> Tensor:
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def cases() -> list[Case]:
    drawn = (whole(1, 20, seed=1) / 1000, whole(20, 200, seed=2) / 1000, whole(20, 200, seed=3))
    return [
        Case("Stable Diffusion's", (0.00085, 0.012, 1000)),
        Case("a short one", (0.01, 0.2, 10)),
        Case("betas from {:g} to {:g}, {} steps".format(*drawn), drawn),
    ]


def _linear(first: float, last: float, steps: int) -> Tensor:
    return torch.cumprod(1 - torch.linspace(first, last, steps, dtype=torch.float64), 0)


def _summed(first: float, last: float, steps: int) -> Tensor:
    return 1 - torch.cumsum(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2, 0)


def _betas(first: float, last: float, steps: int) -> Tensor:
    return torch.cumprod(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2, 0)


def _not_multiplied(first: float, last: float, steps: int) -> Tensor:
    return 1 - torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def _rooted(first: float, last: float, steps: int) -> Tensor:
    return alpha_bars(first, last, steps).sqrt()


def _from_one(first: float, last: float, steps: int) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars(first, last, steps)[:-1]])


def _by_logarithms(first: float, last: float, steps: int) -> Tensor:
    k = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    betas = (first**0.5 + k * (last**0.5 - first**0.5)) ** 2
    return torch.log1p(-betas).cumsum(0).exp()


def install(solution: Solution) -> AbstractContextManager[None]:
    """The betas follow from the learner's shares."""

    def betas(self: NoiseSchedule) -> Tensor:
        shares = solution(self.beta_start, self.beta_end, self.num_train_timesteps).double()
        return 1 - torch.cat([shares[:1], shares[1:] / shares[:-1]])

    return replaced(NoiseSchedule, "_plain_betas", betas)


def _with_new_schedule(sd: Any) -> dict[str, Any]:
    """A schedule whose shares are not computed yet."""
    return {"scheduler": replace(sd.scheduler, schedule=replace(sd.scheduler.schedule))}


EXERCISE = Exercise(
    number=12,
    name="alpha_bars",
    title="The noise schedule",
    level=2,
    minutes=10,
    notebook="05",
    task=TASK,
    reference=alpha_bars,
    answer=NoiseSchedule._plain_betas,
    cases=cases,
    mistakes=(
        Mistake("beta itself grows evenly; expected its square root", _linear),
        Mistake("the betas are added up; shares of what is left are multiplied", _summed),
        Mistake("the betas are multiplied; what is left after each is 1 - beta", _betas),
        Mistake("1 - beta is not multiplied up to t", _not_multiplied),
        Mistake("these are the factors of the image; expected their squares, shares of the variance", _rooted),
        Mistake("everything is one timestep late; the first one has its noise already", _from_one),
    ),
    hints=(
        "torch.linspace between the roots, then squared.",
        "After two timesteps (1 - beta_1)(1 - beta_2) is left.",
        "torch.cumprod multiplies everything up to each place.",
    ),
    install=install,
    run=_with_new_schedule,
    variants=(_by_logarithms,),
    atol=1e-7,
)
