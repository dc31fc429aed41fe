"""A step of Euler's method with churn."""

from collections.abc import Callable

from torch import Tensor

from minisd.exercises.exercise import Case, Exercise
from minisd.exercises.inputs import denoiser, normal

TEXT = """
A step of Euler's method that first adds noise (Karras et al. 2022, algorithm 2, without its correction). x is a
clean image plus noise of standard deviation sigma.

1. Raise the noise level to higher = sigma (1 + churn): add `noise`, scaled so that the noise in x has this
   standard deviation.
2. denoise(x, sigma) gives the clean image (B, C, h, w) for a noisy one (B, C, h, w) and its level, a number.
   The slope at the higher level is (x - clean image) / higher, for the x of 1.
3. Follow this slope, in one step, from the higher level to sigma_next.

x and noise (B, C, h, w), noise has the standard deviation 1; sigma > sigma_next >= 0 and churn >= 0: numbers ->
x at sigma_next (B, C, h, w).
"""


def churn_step(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, noise: Tensor, sigma: float, sigma_next: float, churn: float
) -> Tensor:
    raise NotImplementedError


def cases() -> list[Case]:
    x, noise = 3 * normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    return [
        Case("in the middle", (denoiser, x, noise, 3.0, 2.2, 0.3)),
        Case("without churn", (denoiser, x, noise, 1.5, 1.1, 0.0)),
        Case("the last step", (denoiser, x, noise, 0.4, 0.0, 0.2)),
    ]


TASK = Exercise(
    number=103,
    name="churn_step",
    title="A step of Euler's method with churn",
    level=3,
    minutes=25,
    notebook="06",
    task=TEXT,
    reference=churn_step,
    answer=None,
    cases=cases,
    mistakes=(),
    hints=(
        "Variances of independent noise add up, standard deviations do not.",
        "After the first part, sigma does not occur any more.",
        "The step is (sigma_next - higher), which is negative.",
    ),
    needs=("euler_step",),
)
