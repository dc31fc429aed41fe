"""Sample images of a stage in training, saved beside its run."""

from pathlib import Path

import torch

from minisd import images
from minisd.models import VAE, PreviewDecoder
from minisd.pipeline import StableDiffusion
from minisd.sticker.training.dataset import FIRST_TEST_SEED, training_scenes
from minisd.sticker.world.render import render

PROMPTS = [
    "a red circle",
    "a small yellow star sticker",
    "a large purple heart on a black background",
    "a green square in front of an orange triangle",
    "a large red star to the left of a small blue ring on a beige background",
    "an orange cross in the top left and a pink diamond on the right",
    "three small blue circles",
    "an outlined blue heart",
]


@torch.no_grad()
def save_reconstructions(vae: VAE, path: Path, count: int = 8) -> None:
    """Save scenes that are not used in training, above their reconstructions by the autoencoder."""
    device = next(vae.parameters()).device
    pixels = render(training_scenes(count, seed=FIRST_TEST_SEED), vae.config.sample_size, device)
    again = vae.decode(vae.encode(pixels).mean)
    images.save(images.image_grid(images.to_pil(torch.cat([pixels, again])), count, gap=2), path, overwrite=True)


@torch.no_grad()
def save_previews(vae: VAE, decoder: PreviewDecoder, path: Path, count: int = 8) -> None:
    """Save scenes that are not used in training, decoded by the autoencoder, above what the preview decoder draws."""
    raw = vae.encode(render(training_scenes(count, seed=FIRST_TEST_SEED), vae.config.sample_size)).mean
    pixels = torch.cat([vae.decode(raw), decoder(vae.scaled(raw))])
    images.save(images.image_grid(images.to_pil(pixels), count, gap=2), path, overwrite=True)


def save_drawings(sd: StableDiffusion, path: Path) -> None:
    """Save an image of each of PROMPTS, generated in 10 steps."""
    drawn = sd(PROMPTS, seed=1, num_inference_steps=10).images
    images.save(images.image_grid(drawn, 4, gap=2), path, overwrite=True)
