"""Depth: a map that says where things are; mirror the map, and the image is mirrored."""

from typing import Any

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import grey_map, pictures
from minisd.demos.inputs import check_task, depth_of, steps_of
from minisd.demos.unet_calls import recorded_calls
from minisd.images import Picture
from minisd.pipeline import StableDiffusion

PROMPT = "a large orange circle above a small green square on a black background"
COUNT = 3  # images of each map
DIFFERENT = 0.25  # of the range: a pixel that differs so much from the background belongs to an object


def show(
    sd: StableDiffusion,
    depth_map: Picture | None = None,
    prompt: str = PROMPT,
    seed: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """A depth map and its mirror image, what the UNet reads of them, and three images of each. Raises InputError."""
    check_task(sd, "depth")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    near = depth_of(sd, depth_map)
    given: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "num_images_per_prompt": COUNT,
    }
    rows, cells = [], []
    channels = sd.vae.config.latent_channels
    for name, values in (("The map", near), ("The map mirrored, with the same noise", near.flip(-1))):
        with recorded_calls(sd.unet) as calls:
            drawn: Tensor = sd(prompt, depth_map=values, seed=seed, output_type="pt", **given).images.cpu()
        read = calls[0].latents[0, channels].cpu()
        overlaps = [overlap(each, values[0, 0]) for each in drawn]
        high = float(values.max())
        panels = [
            Panel("depth: near is white", grey_map(values[0, 0], float(values.min()), high), "the depth map"),
            Panel(f"as channel {channels} of the UNet, -1 to 1", grey_map(read, -1, 1), "the map in latent cells"),
        ]
        panels += [
            Panel(f"seed {seed + k}: overlap {share:.2f}", picture, f"an image that follows the depth map, {k + 1}")
            for k, (share, picture) in enumerate(zip(overlaps, pictures(drawn), strict=True))
        ]
        rows.append(row_of(f"{name}: {prompt!r}", panels))
        cells += [(name.partition(",")[0].lower(), seed + k, share) for k, share in enumerate(overlaps)]
    crossed = [overlap(each, near[0, 0]) for each in drawn]
    own, other = (sum(shares) / COUNT for shares in ([cell[2] for cell in cells[:COUNT]], crossed))
    return Demo(
        "Depth: the map says where, the prompt says what",
        (
            f"The map, reduced to the {read.shape[1]} x {read.shape[0]} latent cells and stretched to -1..1, is one "
            f"more channel of the UNet's input beside the {channels} of x_t, the same at every call.",
            f"What is drawn covers the same area as the map: intersection over union {own:.2f}; the images of the "
            f"mirrored map overlap the map by {other:.2f}. (Drawn is what differs from "
            "the colour at the farthest places.)",
        ),
        tuple(rows),
        Table(("depth", "seed", "overlap"), tuple(cells)),
        ("minisd/pipeline/initial_latents.py",),
        "18",
    )


def overlap(pixels: Tensor, near: Tensor) -> float:
    """Intersection over union of what pixels (3, H, W) show and what is nearer than the background of (H, W).

    Shown is what differs from the median colour of the farthest places; it is exact for plain backgrounds alone.
    """
    far = near <= near.min() + 1e-3
    background = pixels[:, far].median(dim=1).values
    found = (pixels - background[:, None, None]).abs().amax(0) / 2 > DIFFERENT
    both, either = found & ~far, found | ~far
    return float(both.sum() / torch.clamp(either.sum(), min=1))
