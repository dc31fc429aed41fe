"""Several prompts in one image, and the frames of a loop: what --grid, --turned and --loop ask for."""

import argparse
import re

from torch import Tensor

from minisd._internal import validation
from minisd._internal.messages import shown
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion, View, view_grid
from minisd.pipeline.noise import noise_circle
from minisd.pipeline.views import canvas_of

MOST_WINDOWS = 1000


def read_grid(text: str, prompt: str) -> tuple[int, int]:
    """Columns and rows of --grid, for as many lines of the prompt, or for one line."""
    match = re.fullmatch(r"([1-9][0-9]{0,2})x([1-9][0-9]{0,2})", text)
    if match is None:
        raise InputError(f"--grid is {shown(text)}, expected columns and rows, such as 5x3.")
    columns, rows = map(int, match.groups())
    if columns * rows > MOST_WINDOWS:
        raise InputError(f"--grid is {columns * rows:,} windows, expected at most {MOST_WINDOWS:,}.")
    view_grid(prompts_of(prompt), columns, rows, 1)
    return columns, rows


def prompts_of(text: str) -> str | list[str]:
    """The prompt of each window: the lines, or one prompt for all."""
    lines = text.splitlines()
    return lines if len(lines) > 1 else text


def views_for(
    args: argparse.Namespace, prompt: str, grid: tuple[int, int] | None, sd: StableDiffusion
) -> list[View] | None:
    """The views of the image, where there are several."""
    if args.turned is not None:
        return [View(prompt), View(args.turned, turn=args.turn or "half")]
    if grid is None:
        return None
    side = min(sd.unet.config.cells) * sd.vae.config.downscale
    return view_grid(prompts_of(prompt), *grid, side)


def loop_noise(
    args: argparse.Namespace, frames: int, sd: StableDiffusion, views: list[View] | None, seed: int
) -> Tensor:
    """The noise of the frames of a loop, of the size of the image."""
    factor = sd.vae.config.downscale
    height, width = (side * factor for side in sd.unet.config.cells)
    if views is not None:
        height, width = canvas_of(views, (height, width))
    sides = ("height", args.height, height), ("width", args.width, width)
    cells = [
        validation.size(usual if asked is None else asked, name, factor, factor) // factor
        for name, asked, usual in sides
    ]
    return noise_circle(frames, (sd.vae.config.latent_channels, *cells), seed)
