"""The forward process: an image and noise are mixed."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import image_to_image, normal
from minisd.schedulers import NoiseSchedule

TASK = """
Mix clean latents with noise, so that the variance stays 1 (Ho et al. 2020, eq. 4).

x0 and noise (B, C, h, w); alpha_bar (B,), the share of x0 in the variance -> (B, C, h, w).
"""


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    a = alpha_bar.view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def cases() -> list[Case]:
    def of(count: int, seed: int, *shares: float) -> tuple[Tensor, ...]:
        return normal(count, 3, 4, 5, seed=seed), normal(count, 3, 4, 5, seed=seed + 1), torch.tensor(shares)

    return [Case("two images of different noise", of(2, 1, 0.9, 0.2)), Case("three images", of(3, 5, 0.5, 0.01, 0.99))]


def _whole(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    a = alpha_bar.view(-1, 1, 1, 1)
    return a * x0 + (1 - a) * noise


def _swapped(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return add_noise(noise, x0, alpha_bar)


def _one_level(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return add_noise(x0, noise, alpha_bar[:1].expand(len(x0)))


def _noise_unscaled(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return alpha_bar.view(-1, 1, 1, 1).sqrt() * x0 + noise


def _one_by_one(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    parts = zip(x0, noise, alpha_bar.tolist(), strict=True)
    return torch.stack([a**0.5 * image + (1 - a) ** 0.5 * some for image, some, a in parts])


def install(solution: Solution) -> AbstractContextManager[None]:
    def of_schedule(self: NoiseSchedule, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        share = self.alpha_bars[torch.as_tensor(t).cpu()].float().reshape(-1).expand(len(x0))
        return solution(x0, noise.to(x0), share.to(x0.device))

    return replaced(NoiseSchedule, "add_noise", of_schedule)


EXERCISE = Exercise(
    number=1,
    name="add_noise",
    title="Add noise",
    level=1,
    minutes=5,
    notebook="05",
    task=TASK,
    reference=add_noise,
    answer=NoiseSchedule.add_noise,
    cases=cases,
    mistakes=(
        Mistake("the shares are used as they are; a share of the variance is the square of a factor", _whole),
        Mistake("x0 and the noise are exchanged", _swapped),
        Mistake("all images get the noise level of the first one", _one_level),
        Mistake("the noise keeps its full size, so the variance is not 1", _noise_unscaled),
    ),
    hints=(
        "alpha_bar is a share of the variance, not a factor. What is the variance of a x + b y, of independent x, y?",
        "alpha_bar is a share of the variance. The factor of x0 is its square root.",
        "alpha_bar.view(-1, 1, 1, 1) has one number for each image.",
    ),
    install=install,
    run=image_to_image,
    variants=(_one_by_one,),
)
