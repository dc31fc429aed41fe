"""Does DDIM inversion give pictures back?  Scenes of the world to noise and back, in dB."""

from typing import NamedTuple

import torch
from tqdm import tqdm

from minisd.interpret.inversion import invert
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.metrics import BATCH, psnr
from minisd.sticker.evaluation.prompt_suites import examples
from minisd.sticker.world.render import render


class RoundTrip(NamedTuple):
    """PSNR in dB of pictures that went to noise and back, and of the autoencoder alone, which is the most it can be."""

    mean_psnr: float
    worst_psnr: float
    autoencoder_psnr: float


@torch.no_grad()
def round_trip(
    sd: StableDiffusion,
    count: int,
    seed: int,
    steps: int = 50,
    guidance_scale: float = 1.0,
    refine: int = 2,
    label: str | None = None,
) -> RoundTrip:
    """Invert `count` scenes of two things, with the prompts that describe them, and draw them again."""
    chosen = examples("two", count, seed, sd.defaults.words)
    back, floor = [], []
    for k in tqdm(range(0, count, BATCH), desc=label, leave=False, disable=None if label else True):
        part = chosen[k : k + BATCH]
        pixels, prompts = render([each.scene for each in part], sd.vae.config.sample_size), [e.prompt for e in part]
        noise = invert(sd, pixels, prompts, "", steps, guidance_scale, refine)
        again = sd(
            prompts, latents=noise, num_inference_steps=steps, guidance_scale=guidance_scale, output_type="pt"
        ).images
        back += psnr(pixels, again.cpu().float()).tolist()
        floor += psnr(pixels, sd.vae.decode(sd.vae.encode(pixels.to(sd.device)).mean).clamp(-1, 1).cpu()).tolist()
    return RoundTrip(sum(back) / count, min(back), sum(floor) / count)
