"""Measure what views make of one model: turned images, large images and loops (minisd/pipeline/views.py)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tqdm import trange

from minisd import images
from minisd.pipeline import StableDiffusion, View, view_grid
from minisd.pipeline.noise import noise_circle
from minisd.pipeline.views import TURNS
from minisd.sticker.evaluation.judging import BATCH, Rate
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.checker.segment import detect_objects

ANAGRAMS = (  # prompt, turn, prompt of the turned image
    ("a red heart", "flip", "a red triangle"),
    ("a red heart", "half", "a red triangle"),
    ("a blue square left of a red circle", "half", "a red circle left of a blue square"),
    ("a red triangle", "flip", "a red diamond"),
    ("a red circle", "half", "a red square"),
    ("a red circle", "half", "a blue circle"),  # nothing can be both
)
LOOP_PROMPT = "a purple star"


class LoopQuality(NamedTuple):
    """The frames of a loop: how many are exact, and their mean difference (0 to 1) to others.

    step: to the next frame, the last to the first included. apart: to the frame half a turn away.
    """

    exact: Rate
    step: float
    largest_step: float
    apart: float


def measure_anagram(
    sd: StableDiffusion, prompt: str, turn: str, turned: str, count: int, seed: int, steps: int | None = None
) -> Rate:
    """Draw `count` images; the rate of those that are exact as they are and when they are turned."""
    right = 0
    for k in trange(0, count, BATCH, leave=False, desc="turned", disable=None):
        drawn = sd(
            views=[View(prompt), View(turned, turn=turn)],
            seed=seed + k,
            num_images_per_prompt=min(BATCH, count - k),
            num_inference_steps=steps,
        ).images
        for pixels in (images.from_pil(image)[0] for image in drawn):
            right += check(pixels, prompt).exact and check(TURNS[turn].there(pixels), turned).exact
    return Rate(right, count)


def measure_canvas(
    sd: StableDiffusion, prompts: Sequence[str], columns: int, rows: int, seed: int, steps: int | None = None
) -> Rate:
    """Draw large images of columns x rows windows, each with the next prompt; the rate of windows that show theirs.

    A window shows its prompt, of one object, if that object is the one nearest to its centre: others may reach in.
    """
    side, per_image = sd.vae.config.sample_size, columns * rows
    right = total = 0
    for k in trange(0, len(prompts) - per_image + 1, per_image, leave=False, desc="canvas", disable=None):
        views = view_grid(list(prompts[k : k + per_image]), columns, rows, side)
        (canvas,) = sd(views=views, seed=seed + k, num_inference_steps=steps, output_type="pt").images
        for view in views:
            found, _ = detect_objects(canvas[:, view.top : view.top + side, view.left : view.left + side].cpu())
            nearest = min(found, key=lambda obj: (obj.x - 0.5) ** 2 + (obj.y - 0.5) ** 2, default=None)
            (asked,) = parse_caption(view.prompt).objects
            right += nearest is not None and (nearest.shape, nearest.colour) == (asked.shape, asked.colour)
            total += 1
    return Rate(right, total)


def measure_loop(sd: StableDiffusion, frames: int, seed: int, steps: int | None = None) -> LoopQuality:
    """Draw the frames of a loop of LOOP_PROMPT, and compare them."""
    noise = noise_circle(frames, (sd.vae.config.latent_channels, *sd.unet.config.cells), seed)
    parts = [
        sd(
            LOOP_PROMPT, latents=some, num_images_per_prompt=len(some), num_inference_steps=steps, output_type="pt"
        ).images
        for some in noise.split(BATCH)
    ]
    drawn = torch.cat(parts).cpu().float()
    steps_apart = (drawn - drawn.roll(1, 0)).abs().mean((1, 2, 3)) / 2
    half = (drawn - drawn.roll(frames // 2, 0)).abs().mean() / 2
    exact = Rate(sum(check(image, LOOP_PROMPT).exact for image in drawn), frames)
    return LoopQuality(exact, steps_apart.mean().item(), steps_apart.max().item(), half.item())
