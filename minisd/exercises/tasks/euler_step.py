"""A step of Euler's method."""

from contextlib import AbstractContextManager

from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal
from minisd.schedulers import Euler, Grid
from minisd.schedulers.base import Step

TASK = """
One step of Euler's method over the noise level sigma (Karras et al. 2022), where x = x0 + sigma noise. The
slope dx/dsigma is the noise in x, (x - x0) / sigma. Follow it to the next level.

x, and x0, the clean latents that the model predicts (B, C, h, w); sigma > sigma_next >= 0 -> (B, C, h, w).
"""


def euler_step(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * (x - x0) / sigma


def cases() -> list[Case]:
    x, x0 = normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    return [Case("in the middle", (4 * x, x0, 3.0, 2.2)), Case("the last step", (x, x0, 0.4, 0.0))]


def _backwards(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma - sigma_next) * (x - x0) / sigma


def _slope_undivided(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * (x - x0)


def _divided_by_next(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * (x - x0) / sigma_next


def _jump(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x0


def _from_x0(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    share = sigma_next / sigma
    return x0 + share * (x - x0)


def install(solution: Solution) -> AbstractContextManager[None]:
    def step(self: Euler, grid: Grid, i: int, x: Tensor, output: Tensor, memory: object, draw: object) -> Step:
        x0, _ = self.x0_and_slope(grid, i, x, output)
        return Step(solution(x, x0, grid.sigmas[i], grid.sigmas[i + 1]), x0, None)

    return replaced(Euler, "_step", step)


EXERCISE = Exercise(
    number=13,
    name="euler_step",
    title="A step of Euler's method",
    level=3,
    minutes=15,
    notebook="06",
    task=TASK,
    reference=euler_step,
    answer=Euler._step,
    cases=cases,
    mistakes=(
        Mistake("the step leads to more noise; sigma_next - sigma is negative", _backwards),
        Mistake("the slope is not divided by sigma", _slope_undivided),
        Mistake("the slope is divided by the next sigma; it is taken where x is", _divided_by_next),
        Mistake("this jumps to x0; go as far as the next level", _jump),
    ),
    hints=(
        "new = old + (change of sigma) * slope",
        "sigma becomes smaller: the change is negative.",
        "With sigma_next = 0 the result is x0.",
    ),
    install=install,
    run=lambda sd: {"scheduler": Euler.in_place_of(sd.scheduler)},
    needs=("add_noise",),
    variants=(_from_x0,),
)
