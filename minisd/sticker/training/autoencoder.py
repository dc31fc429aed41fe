"""Train the KL autoencoder on pictures of Sticker World."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import VAEConfig
from minisd.errors import InputError, MismatchError
from minisd.models import VAE
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.training.trainer import Recipe, train

VAE_CONFIG = VAEConfig(channels=(24, 48, 96), layers_per_block=1, norm_groups=8, sample_size=64)
KL_WEIGHT = 1e-5  # on the mean over latents
THING_WEIGHT = 4.0  # things are a tenth of the pixels and all of the difficulty
THUMBNAIL_WEIGHT = 0.5  # beside a reconstruction loss that falls from 3 to .1
NOISE = 0.25  # largest deviation, beside the latents' own, of the noise that the decoder learns to ignore
ANCHOR = 1.0  # on how far latents of variance 1 are from those of the autoencoder that a UNet knows ...
LOOSE = 0.2  # ... and for what that one was not taught
DRAWN = {"several": 0.3, "styled": 0.4, "overlapping": 0.7}  # see `sample_scene`: where two things meet is hardest
NARROW = -6.0  # first log variance of the posterior: unit noise would be fought for thousands of steps


def new_vae(seed: int = 0) -> VAE:
    """A fresh autoencoder whose encoder starts almost deterministic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(VAE_CONFIG)
    n = VAE_CONFIG.latent_channels
    with torch.no_grad():
        weight, bias = _parameters(vae.to_moments)
        nn.init.dirac_(weight)
        weight[n:] = 0
        bias.zero_()
        bias[n:] = NARROW
    return vae


def reconstruction_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """L1, squares and gradients, things weighted over background.  (B, 3, H, W) twice -> scalar."""
    away = (target - target[:, :, :1, :1]).abs().amax(1, keepdim=True)  # from the background, read in the corner
    weight = 1 + THING_WEIGHT * F.max_pool2d((away > 0.1).float(), 5, stride=1, padding=2)
    loss = (weight * ((pixels - target).abs() + (pixels - target) ** 2)).mean()
    for scale in (1, 2):
        a, b = (F.avg_pool2d(x, scale) for x in (pixels, target))
        for axis in (2, 3):
            loss = loss + (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean()
    return loss


def thumbnail_loss(latents: Tensor, target: Tensor) -> Tensor:
    """Pull the first three channels to the picture at the size of the latents.  (B, C, h, w), (B, 3, H, W) -> scalar.

    A UNet learns latents that look like a picture several times faster than a code that only the decoder understands
    (Skorokhodov et al. 2025, Kouzelis et al. 2025 get there by asking for the same answer at every scale).
    """
    small = F.avg_pool2d(target, target.shape[-1] // latents.shape[-1])
    return (latents[:, :3] - small).abs().mean()


def train_vae(
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    batch: int = 12,
    start: VAE | None = None,
    steps: int | None = None,
    show: Callable[[VAE], None] | None = None,
    keep_latents: bool = False,
) -> VAE:
    """Train an autoencoder, fresh or from `start`, or continue the run at `path`, for `minutes` or `steps` in all.

    keep_latents: latents stay close to what they are in `start`, so that a UNet which knows them stays of use.
    Returns its moving average, normalised unless the latents were kept. Raises MismatchError when `start` has other
    sizes, InputError when there is none whose latents could be kept.
    """
    if keep_latents and start is None:
        raise InputError("keep_latents is of an autoencoder's latents; give it as start.")
    vae = new_vae()
    n, k = vae.config.latent_channels, vae.config.scaling_factor
    if start is not None:
        if start.config != vae.config:
            raise MismatchError("the autoencoder to start from has other sizes than the one to train.")
        vae.load_state_dict(start.state_dict())
        fold(vae, torch.zeros(n), torch.full((n,), k**-2))  # from deviation 1/k to 1
    known = deepcopy(vae).requires_grad_(False)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        scenes = [sample_scene(generator, **DRAWN) for _ in range(batch)]
        target = render(scenes, VAE_CONFIG.sample_size)
        gauss = vae.encode(target)
        latents = gauss.sample(generator)
        noise = torch.randn(latents.shape, generator=generator) * latents.detach().float().std((0, 2, 3), keepdim=True)
        amount = NOISE * torch.rand((batch, 1, 1, 1), generator=generator)
        pixels = vae.decode(latents + amount * noise)  # a UNet's latents are never exact either
        loss = reconstruction_loss(pixels.float(), target) + KL_WEIGHT * gauss.kl().float()
        if not keep_latents:
            return loss + THUMBNAIL_WEIGHT * thumbnail_loss(gauss.mean.float(), target)
        moved = (gauss.mean - known.encode(target).mean).float().abs().mean((1, 2, 3))
        plain = [not scene.overlapping and all(thing.style == "flat" for thing in scene.things) for scene in scenes]
        return loss + ANCHOR * (moved * torch.where(torch.tensor(plain), 1, LOOSE)).mean()

    recipe = Recipe(minutes, steps, learning_rate=1.5e-3, bfloat16=True, weight_decay=0.0)
    average = train(vae, loss, recipe, path, report, show)
    if keep_latents:
        fold(average, torch.zeros(n), torch.ones(n))  # and back
    else:
        normalise(average)
    return average


@torch.no_grad()
def normalise(vae: VAE, scenes: int = 1000) -> None:
    """Fold the latents' mean and deviation per channel into the two 1x1 convolutions: exact, and nothing else changes.

    Afterwards scaling_factor times the latents has mean 0 and deviation 1, with the official factor.
    """
    generator = torch.Generator().manual_seed(1)
    chunks = [
        vae.encode(render([sample_scene(generator, **DRAWN) for _ in range(100)], VAE_CONFIG.sample_size)).mean
        for _ in range(scenes // 100)
    ]
    latents = torch.cat(chunks)
    fold(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))


@torch.no_grad()
def fold(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Make latents z into (z - mean) / (std * scaling_factor), and the decoder undo it.  mean, std (C,)."""
    n, k = vae.config.latent_channels, vae.config.scaling_factor
    scale = std * k
    weight, bias = _parameters(vae.to_moments)
    weight[:n] /= scale[:, None, None, None]
    bias[:n] = (bias[:n] - mean) / scale
    bias[n:] -= 2 * torch.log(scale)
    weight, bias = _parameters(vae.from_latents)
    bias += weight[:, :, 0, 0] @ mean
    weight *= scale[None, :, None, None]


def _parameters(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert convolution.bias is not None
    return convolution.weight, convolution.bias
