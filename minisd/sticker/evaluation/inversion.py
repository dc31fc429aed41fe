"""Measure DDIM inversion: how well scenes are reproduced from the noise that they are inverted to."""

from typing import NamedTuple

import torch
from tqdm import tqdm

from minisd._internal.image_quality import psnr
from minisd.interpret.inversion import invert
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import BATCH
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.world.render import render


class InversionQuality(NamedTuple):
    """PSNR in dB of reproduced scenes, and of the autoencoder alone, the upper limit."""

    mean_psnr: float
    worst_psnr: float
    autoencoder_psnr: float


@torch.no_grad()
def measure_inversion(
    sd: StableDiffusion,
    count: int,
    seed: int,
    steps: int = 50,
    guidance_scale: float = 1.0,
    refine: int = 2,
    label: str | None = None,
) -> InversionQuality:
    """Invert `count` scenes of two objects, with prompts that describe them, and generate them again."""
    chosen = suite_examples("two", count, seed, sd.defaults.words)
    decibels, limits = [], []
    for k in tqdm(range(0, count, BATCH), desc=label, leave=False, disable=None if label else True):
        prompts, scenes = (list(column) for column in zip(*chosen[k : k + BATCH], strict=True))
        pixels = render(scenes, sd.vae.config.sample_size)
        noise = invert(sd, pixels, prompts, "", steps, guidance_scale, refine)
        again = sd(
            prompts, latents=noise, num_inference_steps=steps, guidance_scale=guidance_scale, output_type="pt"
        ).images
        decoded = sd.vae.decode(sd.vae.encode(pixels.to(sd.device)).mean).clamp(-1, 1)
        decibels += psnr(pixels, again.cpu().float()).tolist()
        limits += psnr(pixels, decoded.cpu()).tolist()
    return InversionQuality(sum(decibels) / count, min(decibels), sum(limits) / count)
