"""Inpainting: the mask, what the UNet reads beside the latents, and what is drawn into the hole."""

import math
from typing import Any

import torch
from torch import Tensor

from minisd._internal import validation
from minisd._internal.image_quality import psnr
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import grey_map, pictures
from minisd.demos.inputs import check_task, mask_of, pixels_of, steps_of
from minisd.demos.unet_calls import recorded_calls
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import StableDiffusion

PROMPT = "a large green star to the left of a small blue square on a beige background"
COUNT = 3  # images


def show(
    sd: StableDiffusion,
    image: Picture | None = None,
    mask_image: Picture | None = None,
    prompt: str = PROMPT,
    seed: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """A hole in an image, filled three times: by an inpainting model, or by blending with a text-to-image model.

    mask_image: white where it is redrawn; without one, a box. Raises InputError.
    """
    check_task(sd, "inpainting", "text")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    pixels, mask = pixels_of(sd, image), mask_of(sd, mask_image, own_scene=image is None)
    if not 0 < float(mask.mean()) < 1:
        raise InputError("mask_image marks nothing or everything, expected white where the image is redrawn.")
    given: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "num_images_per_prompt": COUNT,
    }
    with recorded_calls(sd.unet) as calls:
        drawn: Tensor = sd(prompt, image=pixels, mask_image=mask, seed=seed, output_type="pt", **given).images.cpu()
    hole = pixels * (1 - mask)
    with torch.no_grad():
        floor = sd.decode(sd.vae.scaled(sd.vae.encode(pixels.to(sd.device, sd.dtype)).mean.float())).cpu()
    kept = [psnr_where(1 - mask, pixels, each[None]) for each in drawn]
    changed = [psnr_where(mask, pixels, each[None]) for each in drawn]
    read, channels = calls[0].latents[0].cpu(), sd.vae.config.latent_channels
    names = [f"x_t, channel {k}" for k in range(channels)]
    if sd.task == "inpainting":
        names += ["mask", *(f"image with hole, channel {k}" for k in range(channels))]
    limit = float(read.abs().max())
    how = "reads the mask and the image with the hole at every call"
    if sd.task == "text":
        how = "knows no mask: after each step the image outside is put back, with the noise of that step"
    return Demo(
        "Inpainting: a part of the image is drawn again",
        (
            f"The mask marks {100 * float(mask.mean()):.0f} % of the image. This model {how}.",
            f"Its first layer reads {len(read)} channels: {channels} of x_t"
            + (f", 1 of the mask, {channels} of the image with the hole." if len(read) > channels else "."),
            f"Outside of the mask {kept[0]:.1f} dB PSNR are kept; the autoencoder alone keeps "
            f"{psnr_where(1 - mask, pixels, floor):.1f} dB.",
        ),
        (
            row_of(
                "What is given",
                [
                    Panel("image", pictures(pixels)[0], "the image before"),
                    Panel("mask: white is redrawn", pictures(2 * mask.expand(-1, 3, -1, -1) - 1)[0], "the mask"),
                    Panel("image with hole", pictures(hole)[0], "the image with the marked part in grey"),
                ],
            ),
            row_of(
                f"What the UNet reads at its first call; black is {-limit:.1f} and white {limit:.1f}",
                [
                    Panel(name, grey_map(values, -limit, limit), f"an input channel of the UNet: {name}")
                    for name, values in zip(names, read, strict=True)
                ],
            ),
            row_of(
                f"What is drawn for {prompt!r}",
                [
                    Panel(f"seed {seed + k}: {near:.1f} dB outside", picture, f"the hole is filled, {k + 1}")
                    for k, (near, picture) in enumerate(zip(kept, pictures(drawn), strict=True))
                ],
            ),
        ),
        Table(
            ("seed", "PSNR outside of the mask (dB)", "PSNR inside (dB)"),
            tuple((seed + k, near, far) for k, (near, far) in enumerate(zip(kept, changed, strict=True))),
        ),
        ("minisd/pipeline/initial_latents.py", "minisd/pipeline/denoising.py"),
        "18",
    )


def psnr_where(mask: Tensor, first: Tensor, second: Tensor) -> float:
    """The PSNR in dB of two images (1, 3, H, W) over the pixels that a mask (1, 1, H, W) marks."""
    over_all = float(psnr(first * mask, second * mask))
    return over_all + 10 * math.log10(float(mask.mean()))  # the other pixels are equal and lower the mean error
