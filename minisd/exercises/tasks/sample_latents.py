"""From the encoder's output to scaled latents."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import image_to_image, normal, uniform
from minisd.models import VAE
from minisd.models.vae import Gaussian
from minisd.pipeline import initial_latents
from minisd.pipeline.latents import Randn, encode_pixels

TASK = """
Draw latents from the encoder's normal distribution, and scale them to about unit variance for the UNet.

moments (B, 2C, h, w): the means, then the logarithms of the variances. noise (B, C, h, w), unit noise. factor:
0.18215 for Stable Diffusion 1; multiply the drawn latents by it -> (B, C, h, w).
"""


def sample_latents(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    mean, logvar = moments.chunk(2, dim=1)
    return factor * (mean + (logvar / 2).exp() * noise)


def cases() -> list[Case]:
    means, logs = 5 * normal(2, 3, 4, 5, seed=1), uniform(2, 3, 4, 5, seed=2, low=-3.0, high=1.0)
    noise = normal(2, 3, 4, 5, seed=3)
    return [Case(f"factor {factor}", (torch.cat([means, logs], 1), noise, factor)) for factor in (0.18215, 0.5)]


def _divided(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    return sample_latents(moments, noise, 1.0) / factor


def _only_mean(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    return factor * moments.chunk(2, dim=1)[0]


def _variance(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    mean, logvar = moments.chunk(2, dim=1)
    return factor * (mean + logvar.exp() * noise)


def _log_as_deviation(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    mean, logvar = moments.chunk(2, dim=1)
    return factor * (mean + logvar * noise)


def _mean_alone_scaled(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    mean, logvar = moments.chunk(2, dim=1)
    return factor * mean + (logvar / 2).exp() * noise


def _interleaved(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    return factor * (moments[:, ::2] + (moments[:, 1::2] / 2).exp() * noise)


def _by_variance(moments: Tensor, noise: Tensor, factor: float) -> Tensor:
    channels = noise.shape[1]
    return moments[:, :channels] * factor + torch.sqrt(moments[:, channels:].exp()) * noise * factor


def install(solution: Solution) -> AbstractContextManager[None]:
    def encode(vae: VAE, pixels: Tensor, randn: Randn) -> Tensor:
        if vae.config.latents_mean is not None:  # a newer autoencoder, whose latents are scaled otherwise
            return encode_pixels(vae, pixels, randn)
        gauss: Gaussian = vae.encode(pixels.to(vae.from_latents.weight.dtype))
        moments = torch.cat([gauss.mean, gauss.logvar], 1).float()
        return solution(moments, randn(gauss.mean.shape).to(moments), vae.config.scaling_factor)

    return replaced(initial_latents, "encode_pixels", encode)


EXERCISE = Exercise(
    number=14,
    name="sample_latents",
    title="Latents from the encoder",
    level=2,
    minutes=10,
    notebook="09",
    task=TASK,
    reference=sample_latents,
    answer=encode_pixels,
    cases=cases,
    mistakes=(
        Mistake("the latents are divided by the factor; it is applied before the UNet, and divided out before decoding",
                _divided),
        Mistake("the noise is not used; this is the mean, not a sample", _only_mean),
        Mistake("the noise is multiplied by the variance; expected by its square root", _variance),
        Mistake("the logarithm is used as if it were the deviation", _log_as_deviation),
        Mistake("only the mean is scaled", _mean_alone_scaled),
        Mistake("means and logarithms are read alternately; the first half of the channels is the mean", _interleaved),
    ),
    hints=(
        "mean + deviation * noise, then the factor.",
        "moments.chunk(2, dim=1) gives the two halves of the channels.",
        "The deviation is the square root of the variance: exp(logvar / 2).",
    ),
    install=install,
    run=image_to_image,
    variants=(_by_variance,),
)  # fmt: skip
