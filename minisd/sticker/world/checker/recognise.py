"""Recognise the object in a region: colour from the region's core, shape and style by comparison with drawings."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.sticker.world.checker.fitting import Fit, coverage_iou, draw_coverage, equivalent_radius, fit_shapes
from minisd.sticker.world.checker.regions import MIN_AREA, connected_regions, core, dilate, paint_fraction
from minisd.sticker.world.palette import COLOURS, PALETTE, PALETTE_LAB, delta_e, lab
from minisd.sticker.world.scene import SIZES, grid_position
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.styles import styles_for

MAX_COLOUR_DIFFERENCE = 18.0  # CIEDE2000 to a palette colour; a colour further away has no name
MIN_IOU, MIN_LEAD = 0.75, 0.03  # of the best template, and its lead over the second
FLAT_IOU = 0.9  # of the best flat template; below it outlines are tried, too
OUTLINED = [shape for shape in SHAPES if "outline" in styles_for(shape, "large")]


@dataclass(frozen=True)
class Detection:
    """A detected object, lengths in fractions of the canvas; an unknown shape or colour is None."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    area: float  # within the contour; includes a hidden part
    iou: float  # with the template of the best shape
    style: str = "flat"
    hidden: float = 0.0  # share of the area behind another object

    @property
    def position(self) -> tuple[str, str] | None:
        """The cell of the 3x3 grid that the centroid is in."""
        return grid_position(self.x, self.y)


def identify(pixels: Tensor, background: Tensor, region: Tensor, coverage: Tensor | None = None) -> Detection | None:
    """Identify the object in a region of pixels (N, N, 3); None for a speck.

    coverage: the painted part of each pixel, if a better estimate than from the background alone is known.
    """
    size = region.shape[0]
    paint = region_colour(pixels, region)
    if coverage is None:
        coverage = paint_fraction(pixels, background, paint) * dilate(region, 2)
    area = float(coverage.sum()) / coverage.numel()
    if area < MIN_AREA:
        return None
    centres = (torch.arange(size) + 0.5) / size
    x, y = (float((coverage.sum(axis) * centres).sum() / coverage.sum()) for axis in (0, 1))
    radius = equivalent_radius(area)
    drawn = draw_coverage(list(SHAPES), "flat", torch.tensor([[[x, y, radius]]] * len(SHAPES)), size)[:, 0]
    scores = coverage_iou(drawn, coverage)
    colour = colour_name(paint, list(COLOURS))
    names, fits = list(SHAPES), [Fit(x, y, radius, score) for score in scores.tolist()]
    if float(scores.max()) < FLAT_IOU and (hole := _largest_hole(region)) is not None:
        inner = float(((1 - coverage) * dilate(hole, 2)).sum()) / coverage.numel()
        start = Fit(x, y, equivalent_radius(inner + area / 2), 0)  # the contour is in the middle of the line
        outlines = zip(OUTLINED, fit_shapes(coverage, OUTLINED, "outline", [start] * len(OUTLINED)), strict=True)
        some = [(name, each) for name, each in outlines if "outline" in styles_for(name, size_name(each.radius))]
        names, fits = [*names, *(name for name, _ in some)], [*fits, *(each for _, each in some)]
    best, certain = best_fit(fits)
    shape = names[best] if certain else None
    if best < len(SHAPES) or not certain:
        return Detection(shape, colour, size_name(radius), x, y, area, fits[best].iou)
    x, y, radius, iou = fits[best]
    return Detection(shape, colour, size_name(radius), x, y, math.pi * radius**2, iou, "outline")


def best_fit(fits: list[Fit], min_lead: float = MIN_LEAD) -> tuple[int, bool]:
    """The index of the best fit, and whether it is good and leads the others clearly."""
    ranked = sorted(range(len(fits)), key=lambda k: fits[k].iou, reverse=True)
    best, second = (fits[k].iou for k in ranked[:2])
    return ranked[0], best >= MIN_IOU and best - second >= min_lead


def _largest_hole(region: Tensor) -> Tensor | None:
    """The largest hole that a region encloses."""
    edge = torch.zeros_like(region)
    edge[0] = edge[-1] = edge[:, 0] = edge[:, -1] = True
    inner = [part for part in connected_regions(~region, MIN_AREA / 8) if not (part & edge).any()]
    return max(inner, key=lambda part: int(part.sum()), default=None)


def region_colour(pixels: Tensor, region: Tensor) -> Tensor:
    """The colour (3,) of a region."""
    return pixels[core(region)].median(0).values


def colour_name(colour: Tensor, names: list[str]) -> str | None:
    """The nearest palette colour, if it is near enough and among the names."""
    distance = delta_e(lab(colour), PALETTE_LAB)
    nearest = list(PALETTE)[int(distance.argmin())]
    return nearest if nearest in names and float(distance.min()) <= MAX_COLOUR_DIFFERENCE else None


def size_name(radius: float) -> str:
    """The size whose range is nearest, by area."""
    return min(SIZES, key=lambda size: abs(math.log(radius / math.sqrt(SIZES[size][0] * SIZES[size][1]))))
