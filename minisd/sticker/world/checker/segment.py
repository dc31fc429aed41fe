"""What is in a picture: palette segmentation, connected components, analysis by synthesis; nothing learned."""

import torch
from torch import Tensor

from minisd.sticker.world.checker.layering import told_apart
from minisd.sticker.world.checker.recognise import Found, identify, name_of
from minisd.sticker.world.checker.regions import MIN_AREA, MIXTURE, core, dilate, erode, regions, unlike
from minisd.sticker.world.checker.stickers import (
    are_there,
    cover_by_hue,
    in_style,
    is_white,
    local_ground,
    strangers,
    trim_of,
)
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS, PALETTE_LAB, delta_e, lab

FOREGROUND = 12.0  # CIEDE2000 to the background, above which a pixel belongs to something


def find(image: Tensor) -> tuple[list[Found], str | None]:
    """All objects of a picture, (3, N, N) in [-1, 1], and its background (None: not one of ours)."""
    pixels = image.detach().float().cpu().clamp(-1, 1).permute(1, 2, 0)
    rim = max(1, pixels.shape[0] // 32)
    frame = torch.ones(pixels.shape[:2], dtype=torch.bool)
    frame[rim:-rim, rim:-rim] = False
    ground = pixels[frame].median(0).values
    foreground = delta_e(lab(pixels), lab(ground)) > FOREGROUND
    trim = trim_of(pixels, ground, foreground)
    if are_there(pixels, ground, trim, foreground):
        found = _with_stickers(pixels, ground, foreground, trim)
    else:
        shown = regions(foreground)
        found = [thing for own in shown for thing in told_apart(pixels, ground, _split(pixels, ground, own))]
    return found, name_of(ground, list(BACKGROUNDS))


def _with_stickers(pixels: Tensor, ground: Tensor, foreground: Tensor, trim: Tensor) -> list[Found]:
    """The things of a picture in which some have border and shadow."""
    found, explained = [], torch.zeros_like(trim)
    for region in regions(foreground & ~trim):
        on = local_ground(pixels, ground, region)
        for part in _split(pixels, on, region):
            covered = cover_by_hue(pixels, part) if is_white(on) else None  # a shadow may be near
            thing = identify(pixels, on, part, covered)
            if thing is not None:
                thing, around = in_style(pixels, ground, thing, part)
                found.append(thing)
                explained |= around | dilate(part, 2)
    return [*found, *strangers(trim, explained)]


def _split(pixels: Tensor, ground: Tensor, own: Tensor) -> list[Tensor]:
    """A region in parts of one paint each: what no mixture of paint and ground explains is another thing."""
    inner = pixels[core(own)]
    name = delta_e(lab(inner)[:, None], PALETTE_LAB[: len(COLOURS)]).argmin(1)
    paint = inner[name == name.mode().values].median(0).values
    other = erode(own & (unlike(pixels, ground, paint) > MIXTURE))
    if other.sum() < MIN_AREA / 4 * own.numel():
        return [own]
    other = dilate(other) & own
    if (own & ~other).sum() < MIN_AREA * own.numel():  # noise: nothing is of one paint
        return [own]
    rest = [part for region in regions(other) for part in _split(pixels, ground, region)]
    return regions(own & ~other) + rest
