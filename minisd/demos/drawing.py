"""Images and maps of numbers at a size that shows their pixels; colours and letters of all demos."""

import math
from functools import cache

import torch
from PIL import Image, ImageFont, ImageOps
from torch import Tensor

from minisd import images
from minisd.pipeline import StableDiffusion

LEAST, MOST = 128, 256  # pixels of the longer side of an image on a sheet
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # safe for colour blindness
INK, FAINT, PAPER = "#1a1a1a", "#8a8a8a", "#ffffff"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own letters, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """Pixels of a text in one line."""
    return math.ceil(font(size).getlength(text))


def fitted(image: Image.Image, least: int = LEAST) -> Image.Image:
    """An image whose longer side has `least` to twice as many pixels.

    Each pixel of a small image becomes a square of equal pixels; a large image is reduced by a filter.
    """
    side = max(image.size)
    if side > max(MOST, 2 * least):
        return ImageOps.contain(image, (MOST, MOST), Image.Resampling.LANCZOS)
    factor = max(1, math.ceil(least / side))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def pictures(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [-1, 1] -> B images at the size of a sheet."""
    return [fitted(image) for image in images.to_pil(pixels)]


def decoded(sd: StableDiffusion, latents: Tensor) -> list[Image.Image]:
    """Latents (B, C, h, w), scaled as the UNet reads them -> B images at the size of a sheet."""
    return pictures(sd.decode(latents))


def grey_map(values: Tensor, low: float, high: float) -> Image.Image:
    """Numbers (h, w) in grey: `low` is black, `high` white."""
    return fitted(_levels(values, low, high).convert("RGB"))


def heat_map(values: Tensor, high: float) -> Image.Image:
    """Numbers (h, w) from 0 up in black, purple and yellow: `high` is brightest."""
    return fitted(ImageOps.colorize(_levels(values, 0, high), "#04020f", "#fcfdbf", mid="#b73779"))


def signed_map(values: Tensor, limit: float) -> Image.Image:
    """Numbers (h, w) of both signs: -limit is blue, 0 white, limit red."""
    return fitted(ImageOps.colorize(_levels(values, -limit, limit), "#1f5fa8", "#b2182b", mid="#f7f7f7"))


def heat_colour(share: float) -> tuple[str, str]:
    """The colours of a cell and of the letters in it, for a number in 0 to 1: white to blue."""
    share = min(max(share, 0.0), 1.0)
    light = [round(255 + share * (dark - 255)) for dark in (8, 81, 156)]
    return f"#{light[0]:02x}{light[1]:02x}{light[2]:02x}", PAPER if share > 0.55 else INK


def _levels(values: Tensor, low: float, high: float) -> Image.Image:
    scaled = (values.detach().float().cpu() - low) / max(high - low, 1e-12)
    return Image.fromarray((255 * scaled.clamp(0, 1)).round().to(torch.uint8).numpy())
