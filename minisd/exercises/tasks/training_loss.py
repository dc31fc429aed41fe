"""The loss of a step of training."""

from collections.abc import Callable

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import noise_model, normal
from minisd.training.denoising import denoising_losses

Predict = Callable[[Tensor, Tensor], Tensor]

TASK = """
The loss of a training step (Ho et al. 2020): mix the latents with noise, each image at its own timestep, let
the model predict the noise, and take the mean square error over everything.

predict(x, t) gives the prediction (B, C, h, w) for noisy latents and timesteps (B,). x0 and noise (B, C, h, w),
t (B,) whole numbers, alpha_bars (T,): the share of the image in the variance at each timestep -> a scalar.
"""


def training_loss(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    a = alpha_bars[t].view(-1, 1, 1, 1)
    return (predict(a.sqrt() * x0 + (1 - a).sqrt() * noise, t) - noise).square().mean()


def cases() -> list[Case]:
    alpha_bars = torch.linspace(0.99, 0.05, 40)

    def of(count: int, *times: int) -> tuple[object, ...]:
        return (
            noise_model,
            normal(count, 3, 4, 5, seed=1),
            normal(count, 3, 4, 5, seed=2),
            torch.tensor(times),
            alpha_bars,
        )

    return [Case("two timesteps", of(2, 3, 35)), Case("three images", of(3, 20, 1, 39))]


def _predicts_image(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    a = alpha_bars[t].view(-1, 1, 1, 1)
    return (predict(a.sqrt() * x0 + (1 - a).sqrt() * noise, t) - x0).square().mean()


def _one_timestep(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    return training_loss(predict, x0, noise, t[:1].expand(len(t)), alpha_bars)


def _clean_input(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    return (predict(x0, t) - noise).square().mean()


def _no_roots(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    a = alpha_bars[t].view(-1, 1, 1, 1)
    return (predict(a * x0 + (1 - a) * noise, t) - noise).square().mean()


def _absolute(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    a = alpha_bars[t].view(-1, 1, 1, 1)
    return (predict(a.sqrt() * x0 + (1 - a).sqrt() * noise, t) - noise).abs().mean()


def _summed(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    return training_loss(predict, x0, noise, t, alpha_bars) * x0[0].numel()


def _image_by_image(predict: Predict, x0: Tensor, noise: Tensor, t: Tensor, alpha_bars: Tensor) -> Tensor:
    losses = []
    for k in range(len(x0)):
        a = float(alpha_bars[t[k]])
        x = a**0.5 * x0[k : k + 1] + (1 - a) ** 0.5 * noise[k : k + 1]
        losses.append(torch.nn.functional.mse_loss(predict(x, t[k : k + 1]), noise[k : k + 1]))
    return torch.stack(losses).mean()


EXERCISE = Exercise(
    number=18,
    name="training_loss",
    title="The loss of a training step",
    level=2,
    minutes=20,
    notebook="13",
    task=TASK,
    reference=training_loss,
    answer=denoising_losses,
    cases=cases,
    mistakes=(
        Mistake("the prediction is compared with the image; this model predicts the noise", _predicts_image),
        Mistake("all images have the timestep of the first one; each has its own", _one_timestep),
        Mistake("the model sees the clean latents; it must see the noisy ones", _clean_input),
        Mistake("the shares are used without their square roots", _no_roots),
        Mistake("the error is absolute; expected its square", _absolute),
        Mistake("the errors of an image are summed; expected the mean over everything", _summed),
    ),
    hints=(
        "Mix latents and noise as in add_noise, let the model predict from the mixture, compare with the noise.",
        "alpha_bars[t] picks one share for each image.",
        "The model gets two things: the mixture and the timesteps.",
    ),
    needs=("add_noise",),
    variants=(_image_by_image,),
)
