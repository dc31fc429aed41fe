"""Train the preview decoder: a small network that learns to draw what the autoencoder's decoder draws.

Users watch images that are not finished. So half of its latents are what the UNet predicts at any timestep, from the
blurred first predictions to the exact last ones; the others are latents of scenes with some noise.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from minisd.configs import PreviewDecoderConfig, VAEConfig
from minisd.models import PreviewDecoder
from minisd.pipeline import StableDiffusion
from minisd.sticker.training.autoencoder import reconstruction_loss
from minisd.sticker.training.grown_vae import MAX_NOISE, SCENE_PROBABILITIES, predicted_latents
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.training.trainer import Recipe, TrainingRun, train

WIDTH = 16
POOL = 256  # images that the exact decoder draws first: to draw one takes as long as to learn from one
ANY_TIMESTEP = (20, 1000)
CHUNK = 8  # images that are decoded at once


def decoder_config(vae: VAEConfig) -> PreviewDecoderConfig:
    """The sizes of a preview decoder beside an autoencoder: one residual block at each of its resolutions."""
    return PreviewDecoderConfig(WIDTH, (1,) * len(vae.channels), vae.latent_channels, vae.in_channels)


def new_preview_decoder(config: PreviewDecoderConfig) -> PreviewDecoder:
    """An untrained preview decoder, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PreviewDecoder(config)


@torch.no_grad()
def latents_and_pixels(sd: StableDiffusion, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents (count, C, h, w), and the pixels (count, 3, H, W) that the exact decoder gives for them."""
    latents, pixels = [], []
    for begin in range(0, count, CHUNK):
        scenes = [sample_scene(generator, **SCENE_PROBABILITIES) for _ in range(min(CHUNK, count - begin))]
        exact = sd.vae.scaled(sd.vae.encode(render(scenes, sd.vae.config.sample_size)).mean)
        half = (len(scenes) + 1) // 2
        predicted = predicted_latents(sd, exact[:half], scenes[:half], generator, ANY_TIMESTEP)
        amount = MAX_NOISE * torch.rand((len(scenes) - half, 1, 1, 1), generator=generator)
        noised = exact[half:] + amount * torch.randn(exact[half:].shape, generator=generator)
        latents.append(torch.cat([predicted, noised]))
        pixels.append(sd.vae.decode(sd.vae.raw(latents[-1])).clamp(-1, 1))
    return torch.cat(latents), torch.cat(pixels)


def train_preview(
    sd: StableDiffusion,
    run: TrainingRun,
    pool: int = POOL,
    batch: int = 2,
    show: Callable[[PreviewDecoder], None] | None = None,
) -> PreviewDecoder:
    """Train a new preview decoder for a model. Every process draws its own `pool` of images.

    Returns the moving average, which `show` also gets at each save.
    """
    run = run.of(batch=batch, pool=pool, scenes=SCENE_PROBABILITIES)
    decoder = new_preview_decoder(decoder_config(sd.vae.config))

    @cache
    def examples() -> tuple[Tensor, Tensor]:  # drawn by the first step, so that a finished run draws none
        seed = 1 + (dist.get_rank() if dist.is_initialized() else 0)
        drawn = latents_and_pixels(sd, pool, torch.Generator().manual_seed(seed))
        run.report(f"{pool} images drawn by the exact decoder")
        return drawn

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        latents, pixels = examples()
        rows = torch.randint(pool, (batch,), generator=generator)
        return reconstruction_loss(decoder(latents[rows]), pixels[rows])

    recipe = Recipe(learning_rate=3e-3, warmup_steps=50, decay_fraction=0.6, weight_decay=0.0, ema_decay=0.99)
    return train(decoder, loss, recipe, run, show)
