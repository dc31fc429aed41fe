"""Recognise stickers: objects with a white border and a shadow.

Border and shadow are neutral, unlike every object colour, so they are separated first, and an object inside a border is
judged against the white around it, not against the background. Border and shadow must be where the detected object
requires them. Any other neutral region is an unknown object.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from minisd.sticker.world.checker.fitting import equivalent_radius
from minisd.sticker.world.checker.recognise import Detection, region_colour, size_name
from minisd.sticker.world.checker.regions import MIN_AREA, connected_regions, dilate, paint_fraction
from minisd.sticker.world.render import draw_layers
from minisd.sticker.world.scene import Object, Scene

MAX_NEUTRAL_HUE = 0.3  # distance of hues (see hue_of) to those of white, the background and its shades; objects: >= 0.8
MAX_WHITE_DISTANCE = 0.55  # of a border pixel, also a blurred one; beige has 0.7
MAX_TRIM_ERROR = 0.7  # mean distance between a border, or a shadow, and its drawing
MIN_VISIBLE = 0.5  # distance to the background beyond which border, or shadow, can be distinguished from it


def hue_of(pixels: Tensor) -> Tensor:
    """The difference of colours (..., 3) to gray; zero for white, gray and black."""
    return pixels - pixels.mean(-1, keepdim=True)


def neutral_foreground(pixels: Tensor, background: Tensor, foreground: Tensor) -> Tensor:
    """The foreground pixels (N, N) that only a border or a shadow explains: white, dark, or in the background's hue."""
    hue, own = hue_of(pixels), hue_of(background)
    share = (hue @ own / own.square().sum().clamp(min=1e-6)).clamp(0, 1)
    return foreground & ((hue - share[..., None] * own).norm(dim=-1) < MAX_NEUTRAL_HUE)


def coverage_by_hue(pixels: Tensor, region: Tensor) -> Tensor:
    """The part of each pixel that a region paints, with anything white, gray or black around it."""
    hue = hue_of(region_colour(pixels, region))
    return paint_fraction(hue_of(pixels), torch.zeros_like(hue), hue) * dilate(region, 2)


def is_white(pixels: Tensor) -> Tensor:
    """Which of pixels (..., 3) are white or almost white."""
    return (pixels - 1).norm(dim=-1) < MAX_WHITE_DISTANCE


def contains_stickers(pixels: Tensor, background: Tensor, neutral: Tensor, foreground: Tensor) -> bool:
    """Whether there is more neutral foreground than blur leaves along edges: a white border, or on white a shadow."""
    least = MIN_AREA * neutral.numel()
    if not is_white(background):
        return bool((neutral & is_white(pixels)).sum() >= least)
    far = neutral & ~dilate(foreground & ~neutral, 2)
    return bool(far.sum() >= least / 2) and len(connected_regions(far, MIN_AREA / 4)) > 0  # one piece: no noise


def local_background(pixels: Tensor, background: Tensor, region: Tensor) -> Tensor:
    """The colour behind a region, white or the background: whichever is nearer to the pixels around it."""
    rim, white = dilate(region) & ~region, torch.ones_like(background)
    if not rim.any():
        return background
    around = pixels[rim].median(0).values
    return white if (around - white).norm() < (around - background).norm() else background


def recognise_sticker(pixels: Tensor, background: Tensor, found: Detection, region: Tensor) -> tuple[Detection, Tensor]:
    """The object, as a sticker if it has border and shadow, and the mask of the pixels that these explain.

    On white only the shadow is visible, on black only the border. Where both would be visible, an object with only one
    of them is unknown.
    """
    if found.shape is None or found.style != "flat":
        return found, torch.zeros_like(region)
    obj = Object(found.shape, "red", found.size, found.x, found.y, equivalent_radius(found.area), "sticker")
    paint, border, shadow = (each[0, 0, ..., None] for each in draw_layers([Scene((obj,))], region.shape[0]))
    trim = torch.lerp(background - shadow * (background + 1), torch.ones_like(background), border)
    colour = region_colour(pixels, region)
    sticker, flat = (torch.lerp(behind, colour, paint) for behind in (trim, background))
    visible = ((trim - background).norm(dim=-1) > MIN_VISIBLE) & ~dilate(region)
    present = []
    for part in (visible & (border > 0.5)[..., 0], visible & (border <= 0.5)[..., 0]):
        if part.sum() >= MIN_AREA * part.numel():
            error = _distance(sticker, pixels, part)
            present.append(error < min(MAX_TRIM_ERROR, _distance(flat, pixels, part) / 2))
    if not any(present):
        return found, torch.zeros_like(region)
    named = replace(found, style="sticker") if all(present) else replace(found, shape=None)
    return named, dilate((border + shadow)[..., 0] > 0.05, 2)


def _distance(drawn: Tensor, pixels: Tensor, mask: Tensor) -> float:
    """The mean distance in a mask between an image and a drawing (N, N, 3), sharp or blurred as by a decoder."""
    width = 2 * (drawn.shape[0] // 64) + 1
    soft = avg_pool2d(drawn.permute(2, 0, 1), width, 1, width // 2, count_include_pad=False).permute(1, 2, 0)
    return min(float((each - pixels)[mask].norm(dim=-1).mean()) for each in (drawn, soft))


def unexplained_objects(neutral: Tensor, explained: Tensor) -> list[Detection]:
    """Unknown objects: neutral regions that belong to no sticker, with lines and small pieces."""
    found = []
    for region in connected_regions(neutral & ~explained, MIN_AREA * 2 / 3):
        rows, columns = region.nonzero().float().T
        area, size = float(region.float().mean()), region.shape[0]
        x, y = (float(places.mean() + 0.5) / size for places in (columns, rows))
        found.append(Detection(None, None, size_name(equivalent_radius(area)), x, y, area, 0.0))
    return found
