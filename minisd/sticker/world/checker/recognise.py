"""Which thing fills a region: its colour from the core, its shape and style from our own drawings."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.sticker.world.checker.fitting import Fit, agreement, draw, fit, radius_of
from minisd.sticker.world.checker.regions import MIN_AREA, core, cover, dilate, regions
from minisd.sticker.world.palette import COLOURS, PALETTE, PALETTE_LAB, delta_e, lab
from minisd.sticker.world.scene import SIZES
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.styles import styles_for

SAME_COLOUR = 18.0  # CIEDE2000 within which a colour has its palette name
MIN_IOU, MIN_LEAD = 0.75, 0.03  # of the best template, and over the second best
PLAIN_IOU = 0.9  # of a template, from which on nobody looks for an outline
OUTLINED = [shape for shape in THINGS if "outline" in styles_for(shape, "large")]


@dataclass(frozen=True)
class Found:
    """An object, lengths in fractions of the canvas; a shape or colour that is none of ours is None."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    area: float  # within its contour, with what is hidden of it
    iou: float  # with the template of the best shape
    style: str = "flat"
    hidden: float = 0.0  # share of it that is behind another thing


def identify(pixels: Tensor, ground: Tensor, own: Tensor, covered: Tensor | None = None) -> Found | None:
    """Name the thing that fills a region of pixels (N, N, 3); None for a speck.

    covered: how much of each pixel it paints, where that is known better than from the ground alone.
    """
    size = own.shape[0]
    paint = paint_of(pixels, own)
    if covered is None:
        covered = cover(pixels, ground, paint) * dilate(own, 2)
    area = float(covered.sum()) / covered.numel()
    if area < MIN_AREA:
        return None
    centres = (torch.arange(size) + 0.5) / size
    x, y = (float((covered.sum(axis) * centres).sum() / covered.sum()) for axis in (0, 1))
    radius = radius_of(area)
    drawn = draw(list(THINGS), "flat", torch.tensor([[[x, y, radius]]] * len(THINGS)), size)[:, 0]
    scores = agreement(drawn, covered)
    colour = name_of(paint, list(COLOURS))
    names, fits = list(THINGS), [Fit(x, y, radius, score) for score in scores.tolist()]
    if float(scores.max()) < PLAIN_IOU and (hole := _hole(own)) is not None:
        inner = float(((1 - covered) * dilate(hole, 2)).sum()) / covered.numel()
        start = Fit(x, y, radius_of(inner + area / 2), 0)  # the contour is in the middle of the line
        outlined = zip(OUTLINED, fit(covered, OUTLINED, "outline", [start] * len(OUTLINED)), strict=True)
        some = [(name, each) for name, each in outlined if "outline" in styles_for(name, size_of(each.radius))]
        names, fits = [*names, *(name for name, _ in some)], [*fits, *(each for _, each in some)]
    best, sure = surest(fits)
    shape = names[best] if sure else None
    if best < len(THINGS) or not sure:
        return Found(shape, colour, size_of(radius), x, y, area, fits[best].iou)
    x, y, radius, iou = fits[best]
    return Found(shape, colour, size_of(radius), x, y, math.pi * radius**2, iou, "outline")


def surest(fits: list[Fit], lead: float = MIN_LEAD) -> tuple[int, bool]:
    """Which fit is the best, and whether it is good and ahead of the others."""
    ranked = sorted(range(len(fits)), key=lambda k: fits[k].iou, reverse=True)
    best, second = (fits[k].iou for k in ranked[:2])
    return ranked[0], best >= MIN_IOU and best - second >= lead


def _hole(own: Tensor) -> Tensor | None:
    """The largest part of what is not of a region that the region encloses."""
    edge = torch.zeros_like(own)
    edge[0] = edge[-1] = edge[:, 0] = edge[:, -1] = True
    inner = [part for part in regions(~own, MIN_AREA / 8) if not (part & edge).any()]
    return max(inner, key=lambda part: int(part.sum()), default=None)


def paint_of(pixels: Tensor, own: Tensor) -> Tensor:
    """The colour (3,) of a region."""
    return pixels[core(own)].median(0).values


def name_of(colour: Tensor, names: list[str]) -> str | None:
    """The nearest palette colour, if it is near and among the names."""
    distance = delta_e(lab(colour), PALETTE_LAB)
    nearest = list(PALETTE)[int(distance.argmin())]
    return nearest if nearest in names and float(distance.min()) <= SAME_COLOUR else None


def size_of(radius: float) -> str:
    """The size whose range is nearest, by area."""
    return min(SIZES, key=lambda size: abs(math.log(radius / math.sqrt(SIZES[size][0] * SIZES[size][1]))))
