"""DDIM inversion: the noise from which DDIM generates a given image, to edit the image with another prompt."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from minisd import images
from minisd._internal import validation
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import StableDiffusion
from minisd.pipeline.guidance import Scale
from minisd.schedulers import DDIM, DDIMInverse


@torch.no_grad()
def invert(
    sd: StableDiffusion,
    image: Picture,
    prompt: str | Sequence[str] = "",
    negative_prompt: str | Sequence[str] = "",
    num_inference_steps: int | None = None,
    guidance_scale: Scale = 1.0,
    refine: int = 2,
) -> Tensor:
    """Images of any kind (see images.to_pixels), one for each prompt -> their noise, latents (B, C, h, w).

        noise = invert(sd, image, "a red circle", num_inference_steps=50)
        sd("a red circle", latents=noise, num_inference_steps=50, guidance_scale=1)  # the image again
        sd("a red star", latents=noise, num_inference_steps=50)  # a similar image

    Give the prompt, steps and guidance that you will generate with; guidance above 1 makes the inversion less exact.
    refine: additional calls of the UNet for each step, for a closer result; fewer steps need more of them. 0 is DDIM
    inversion as published, see DDIMInverse.
    Raises InputError for a model that predicts x0 and for a sampler that is not DDIM, or DDIM with noise or clipping.
    """
    scheduler = sd.scheduler
    if not isinstance(scheduler, DDIM):
        raise InputError(
            f"only DDIM can be inverted, but this model uses {type(scheduler).__name__}; "
            "set sd.scheduler = DDIM.in_place_of(sd.scheduler)."
        )
    if scheduler.eta != 0 or scheduler.clip_sample:
        raise InputError("DDIM with noise or clipping cannot be inverted, expected eta 0 and clip_sample False.")
    inverse = copy.copy(sd)  # the caller's pipeline keeps its sampler
    inverse.scheduler = DDIMInverse(
        scheduler.schedule, scheduler.timestep_spacing, scheduler.steps_offset, scheduler.set_alpha_to_one, refine
    )
    pixels = images.to_pixels(image, "image")
    factor, count = sd.vae.config.downscale, len(validation.prompts(prompt))
    if pixels.shape[2] % factor or pixels.shape[3] % factor or len(pixels) != count:
        raise InputError(
            f"image is {len(pixels)} image(s) of {pixels.shape[3]} x {pixels.shape[2]}, expected {count}, one for each "
            f"prompt, with a width and height that are multiples of {factor}."
        )
    settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    run = partial(inverse.denoise, prompt, negative_prompt, **settings)
    cells = (pixels.shape[2] // factor, pixels.shape[3] // factor)
    run(latents=torch.zeros(count, sd.vae.config.latent_channels, *cells))  # checks the arguments before any work
    mean = sd.vae.encode(pixels.to(sd.device, sd.vae.from_latents.weight.dtype)).mean.float()
    *_, last = run(latents=sd.vae.scaled(mean))
    return last.latents
