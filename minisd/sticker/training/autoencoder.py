"""Train the KL autoencoder on images of Sticker World of 64 pixels; `grown_vae` enlarges it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import VAEConfig
from minisd.models import VAE
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.training.trainer import Recipe, TrainingRun, train

VAE_CONFIG = VAEConfig(channels=(24, 48, 96), layers_per_block=1, norm_groups=8, sample_size=64)
KL_WEIGHT = 1e-5  # on the mean over the latents
OBJECT_WEIGHT = 4.0  # objects are a tenth of the pixels and the difficult part
THUMBNAIL_WEIGHT = 0.5  # the reconstruction loss falls from 3 to 0.1
MAX_NOISE = 0.25  # deviation of the noise added to the latents, relative to theirs, that the decoder learns to ignore
SCENE_PROBABILITIES = {"several": 0.3, "styled": 0.4, "overlapping": 0.7}  # contacts of two objects are most difficult
INITIAL_LOG_VARIANCE = -6.0  # of the posterior: with unit noise training would be slow for thousands of steps


def new_vae(seed: int = 0) -> VAE:
    """An untrained autoencoder whose encoder is almost deterministic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(VAE_CONFIG)
    n = VAE_CONFIG.latent_channels
    with torch.no_grad():
        weight, bias = _parameters(vae.to_moments)
        nn.init.dirac_(weight)
        weight[n:] = 0
        bias.zero_()
        bias[n:] = INITIAL_LOG_VARIANCE
    return vae


def object_weights(target: Tensor) -> Tensor:
    """The weight of each pixel of images (B, 3, H, W), larger on and around objects.  -> (B, 1, H, W)"""
    contrast = (target - target[:, :, :1, :1]).abs().amax(1, keepdim=True)  # to the background, read in the corner
    return 1 + OBJECT_WEIGHT * F.max_pool2d((contrast > 0.1).float(), 5, stride=1, padding=2)


def reconstruction_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """L1, squared and gradient differences, with a larger weight on objects.  (B, 3, H, W) twice -> scalar."""
    loss = (object_weights(target) * ((pixels - target).abs() + (pixels - target) ** 2)).mean()
    for scale in (1, 2):
        a, b = (F.avg_pool2d(x, scale) for x in (pixels, target))
        for axis in (2, 3):
            loss = loss + (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean()
    return loss


def thumbnail_loss(latents: Tensor, target: Tensor) -> Tensor:
    """The difference of the first three channels to a thumbnail of the image.  (B, C, h, w), (B, 3, H, W) -> scalar.

    A UNet learns latents that resemble an image several times faster than an arbitrary code (Skorokhodov et al. 2025
    and Kouzelis et al. 2025 reach this by equivariance to scale).
    """
    small = F.avg_pool2d(target, target.shape[-1] // latents.shape[-1])
    return (latents[:, :3] - small).abs().mean()


def train_vae(run: TrainingRun, batch: int = 12, show: Callable[[VAE], None] | None = None) -> VAE:
    """Train a new autoencoder. Returns the moving average, with normalised latents."""
    vae = new_vae()

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        scenes = [sample_scene(generator, **SCENE_PROBABILITIES) for _ in range(batch)]
        target = render(scenes, VAE_CONFIG.sample_size)
        gauss = vae.encode(target)
        latents = gauss.sample(generator)
        noise = torch.randn(latents.shape, generator=generator) * latents.detach().float().std((0, 2, 3), keepdim=True)
        amount = MAX_NOISE * torch.rand((batch, 1, 1, 1), generator=generator)
        pixels = vae.decode(latents + amount * noise)  # generated latents are never exact either
        loss = reconstruction_loss(pixels.float(), target) + KL_WEIGHT * gauss.kl().float()
        return loss + THUMBNAIL_WEIGHT * thumbnail_loss(gauss.mean.float(), target)

    recipe = Recipe(learning_rate=1.5e-3, autocast="bfloat16", weight_decay=0.0)
    average = train(vae, loss, recipe, run.of(batch=batch, scenes=SCENE_PROBABILITIES), show)
    normalise(average)
    return average


@torch.no_grad()
def normalise(vae: VAE, scenes: int = 1000) -> None:
    """Normalise the latents per channel: scaling_factor times the latents then has mean 0 and deviation 1.

    The statistics are folded into the two 1x1 convolutions, so reconstructions do not change.
    """
    generator = torch.Generator().manual_seed(1)
    chunks = [[sample_scene(generator, **SCENE_PROBABILITIES) for _ in range(100)] for _ in range(scenes // 100)]
    latents = torch.cat([vae.encode(render(chunk, VAE_CONFIG.sample_size)).mean for chunk in chunks])
    fold_statistics(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))


@torch.no_grad()
def fold_statistics(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Turn latents z into (z - mean) / (std * scaling_factor), and let the decoder invert it.  mean, std (C,)."""
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
