"""DDIM inversion: the noise that DDIM turns back into a given picture, to draw it again with another prompt."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minisd import images
from minisd._internal import validation
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import DenoisingStep, StableDiffusion
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
    """Pictures of any kind (see images.to_pixels), one for each prompt -> their noise, latents (B, C, h, w).

        noise = invert(sd, picture, "a red circle", num_inference_steps=50)
        sd("a red circle", latents=noise, num_inference_steps=50, guidance_scale=1)  # the picture
        sd("a red star", latents=noise, num_inference_steps=50)  # another one like it

    Prompts, steps and guidance are to be those of the way back; guidance above 1 makes it less exact. refine: as many
    more calls of the UNet for each step, for a closer result, and more where steps are few; 0 is DDIM inversion as
    published, see DDIMInverse. All of it runs in the pipeline's own loop.
    Raises InputError for a model that runs another sampler than DDIM without noise or clipping, or predicts x0.
    """
    scheduler = sd.scheduler
    if not isinstance(scheduler, DDIM):
        raise InputError(
            f"only DDIM can be inverted, this model runs {type(scheduler).__name__}; "
            "set sd.scheduler = DDIM.in_place_of(sd.scheduler)."
        )
    if scheduler.eta != 0 or scheduler.clip_sample:
        raise InputError("DDIM that adds noise or clips cannot be inverted, expected eta 0 and clip_sample False.")
    backwards = copy.copy(sd)  # the caller's pipeline keeps its sampler
    backwards.scheduler = DDIMInverse(
        scheduler.schedule, scheduler.timestep_spacing, scheduler.steps_offset, scheduler.set_alpha_to_one, refine
    )
    pixels = images.to_pixels(image, "image")
    factor, count = sd.vae.config.downscale, len(validation.prompts(prompt))
    if pixels.shape[2] % factor or pixels.shape[3] % factor or len(pixels) != count:
        raise InputError(
            f"image is {len(pixels)} picture(s) of {pixels.shape[3]} x {pixels.shape[2]}, expected {count}, one for "
            f"each prompt, with sides that are multiples of {factor}."
        )

    def run(latents: Tensor) -> Iterator[DenoisingStep]:
        return backwards.denoise(
            prompt,
            negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            latents=latents,
        )

    cells = (pixels.shape[2] // factor, pixels.shape[3] // factor)
    run(torch.zeros(count, sd.vae.config.latent_channels, *cells))  # checks the arguments, and does no work
    mean = sd.vae.encode(pixels.to(sd.device, sd.vae.from_latents.weight.dtype)).mean.float()
    *_, last = run(mean * sd.vae.config.scaling_factor)
    return last.latents
