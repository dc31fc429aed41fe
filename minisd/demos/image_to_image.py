"""Image to image: the given image with noise of some strength, and what is drawn from there."""

from typing import Any

import torch

from minisd._internal import validation
from minisd._internal.image_quality import psnr
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import decoded, pictures
from minisd.demos.inputs import check_task, pixels_of, steps_of
from minisd.demos.unet_calls import recorded_calls
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import StableDiffusion
from minisd.pipeline.initial_latents import steps_to_skip

PROMPT = "a large purple heart above a small blue square on a beige background"
STRENGTHS: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def show(
    sd: StableDiffusion,
    image: Picture | None = None,
    prompt: str = PROMPT,
    strength: float | None = None,
    seed: int = 2,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """What image to image begins with and what it draws, for one strength or for several. Raises InputError."""
    check_task(sd, "text")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    strengths = STRENGTHS if strength is None else (validation.real_number(strength, "strength", 0, 1),)
    strengths = tuple(each for each in strengths if steps_to_skip(steps, each) < steps)
    if not strengths:
        raise InputError(f"strength {strength} of {steps} steps leaves no step to do; raise one of them.")
    pixels = pixels_of(sd, image)
    begun, drawn, counts = [], [], []
    for each in strengths:
        given: dict[str, Any] = {"seed": seed, "num_inference_steps": steps, "guidance_scale": guidance_scale}
        with recorded_calls(sd.unet) as calls:
            drawn.append(sd(prompt, image=pixels, strength=each, output_type="pt", **given).images.cpu())
        begun.append(calls[0].latents[:1].cpu())
        counts.append(len(calls))
    kept = [float(psnr(pixels, each)) for each in drawn]
    captions = [f"strength {each:g}" for each in strengths]
    starts = decoded(sd, torch.cat(begun))
    return Demo(
        "Image to image: begin with an image instead of noise",
        (
            f"The image is encoded, noise is added, and the last steps of {steps} are done: strength {strengths[0]:g} "
            f"does {counts[0]} call{'s' * (counts[0] != 1)} of the UNet, strength {strengths[-1]:g} does {counts[-1]}.",
            f"PSNR to the given image: {kept[0]:.1f} dB at strength {strengths[0]:g}, {kept[-1]:.1f} dB at "
            f"{strengths[-1]:g}.",
        ),
        (
            row_of("The given image", [Panel("image", pictures(pixels)[0], "the image to begin with")]),
            row_of(
                "What the UNet gets at its first call: the image under noise",
                [
                    Panel(f"{caption}: {count} calls", picture, f"the image with the noise of {caption}")
                    for caption, count, picture in zip(captions, counts, starts, strict=True)
                ],
            ),
            row_of(
                f"What is drawn for {prompt!r}",
                [
                    Panel(f"{caption}: {near:.1f} dB", picture, f"the drawn image at {caption}")
                    for caption, near, picture in zip(captions, kept, pictures(torch.cat(drawn)), strict=True)
                ],
            ),
        ),
        Table(
            ("strength", "calls", "PSNR to the image (dB)"),
            tuple(zip(strengths, counts, kept, strict=True)),
        ),
        ("minisd/pipeline/initial_latents.py",),
        "17",
    )
