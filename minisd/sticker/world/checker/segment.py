"""Detect the objects in an image by palette segmentation, connected components and analysis by synthesis."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.sticker.world.checker.layering import separate_objects
from minisd.sticker.world.checker.recognise import Detection, colour_name, identify
from minisd.sticker.world.checker.regions import (
    MAX_MIXTURE_DISTANCE,
    MIN_AREA,
    connected_regions,
    core,
    dilate,
    erode,
    mixture_distance,
)
from minisd.sticker.world.checker.stickers import (
    contains_stickers,
    coverage_by_hue,
    is_white,
    local_background,
    neutral_foreground,
    recognise_sticker,
    unexplained_objects,
)
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS, PALETTE_LAB, delta_e, lab

CHECKED_AT = 64  # pixels along a side: all tolerances hold for this size, larger images are reduced to it
FOREGROUND = 12.0  # CIEDE2000 to the background, above which a pixel belongs to an object


def detect_objects(image: Tensor) -> tuple[list[Detection], str | None]:
    """All objects of an image (3, N, N) in [-1, 1], and the name of its background (None if it has none).

    An image larger than CHECKED_AT is reduced to it first, by the mean over areas.
    """
    pixels = image.detach().float().cpu().clamp(-1, 1)
    if pixels.shape[1] > CHECKED_AT:
        pixels = F.interpolate(pixels[None], size=(CHECKED_AT, CHECKED_AT), mode="area")[0]
    pixels = pixels.permute(1, 2, 0)
    rim = max(1, pixels.shape[0] // 32)
    frame = torch.ones(pixels.shape[:2], dtype=torch.bool)
    frame[rim:-rim, rim:-rim] = False
    background = pixels[frame].median(0).values
    foreground = delta_e(lab(pixels), lab(background)) > FOREGROUND
    neutral = neutral_foreground(pixels, background, foreground)
    if contains_stickers(pixels, background, neutral, foreground):
        found = _detect_with_stickers(pixels, background, foreground, neutral)
    else:
        regions = connected_regions(foreground)
        parts = [_split_by_colour(pixels, background, region) for region in regions]
        found = [obj for each in parts for obj in separate_objects(pixels, background, each)]
    return found, colour_name(background, list(BACKGROUNDS))


def _detect_with_stickers(pixels: Tensor, background: Tensor, foreground: Tensor, neutral: Tensor) -> list[Detection]:
    """The objects of an image in which some have a border and a shadow."""
    found, explained = [], torch.zeros_like(neutral)
    for region in connected_regions(foreground & ~neutral):
        around = local_background(pixels, background, region)
        for part in _split_by_colour(pixels, around, region):
            coverage = coverage_by_hue(pixels, part) if is_white(around) else None  # a shadow may be near
            obj = identify(pixels, around, part, coverage)
            if obj is not None:
                obj, trim = recognise_sticker(pixels, background, obj, part)
                found.append(obj)
                explained |= trim | dilate(part, 2)
    return [*found, *unexplained_objects(neutral, explained)]


def _split_by_colour(pixels: Tensor, background: Tensor, region: Tensor) -> list[Tensor]:
    """Split a region into parts of one paint each; pixels that are no mixture of paint and background are split off."""
    inner = pixels[core(region)]
    name = delta_e(lab(inner)[:, None], PALETTE_LAB[: len(COLOURS)]).argmin(1)
    paint = inner[name == name.mode().values].median(0).values
    other = erode(region & (mixture_distance(pixels, background, paint) > MAX_MIXTURE_DISTANCE))
    if other.sum() < MIN_AREA / 4 * region.numel():
        return [region]
    other = dilate(other) & region
    if (region & ~other).sum() < MIN_AREA * region.numel():  # noise without a dominant paint
        return [region]
    rest = [part for each in connected_regions(other) for part in _split_by_colour(pixels, background, each)]
    return connected_regions(region & ~other) + rest
