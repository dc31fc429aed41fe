"""Stickers in a picture: things in a white border that throw a shadow.

Border and shadow are neutral, which no thing of ours is, so they are set apart first, and a thing in a border is
judged by the white around it, not by the background. Each must be where the thing found would have it; whatever else
is neutral belongs to no thing of ours.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from minisd.sticker.world.checker.fitting import radius_of
from minisd.sticker.world.checker.recognise import Found, paint_of, size_of
from minisd.sticker.world.checker.regions import MIN_AREA, cover, dilate, regions
from minisd.sticker.world.render import layers
from minisd.sticker.world.scene import Scene, Thing

NEUTRAL = 0.3  # distance of hues, see hue_of, to those of white, the background and its shades; the palest thing: 0.8
WHITE = 0.55  # distance to white within which a pixel is of a border, a blurred one too; beige has 0.7
NEAR = 0.7  # mean distance to how border, or shadow, should look
VISIBLE = 0.5  # distance to the background beyond which border, or shadow, can be told from it


def hue_of(pixels: Tensor) -> Tensor:
    """What makes colours (..., 3) other than gray: white, gray and black have none."""
    return pixels - pixels.mean(-1, keepdim=True)


def trim_of(pixels: Tensor, ground: Tensor, foreground: Tensor) -> Tensor:
    """The pixels of the foreground (N, N) that only border or shadow explain: white, dark, or as the ground is."""
    hue, own = hue_of(pixels), hue_of(ground)
    share = (hue @ own / own.square().sum().clamp(min=1e-6)).clamp(0, 1)
    return foreground & ((hue - share[..., None] * own).norm(dim=-1) < NEUTRAL)


def cover_by_hue(pixels: Tensor, own: Tensor) -> Tensor:
    """How much of each pixel a region paints, whatever is white, gray or black around it."""
    hue = hue_of(paint_of(pixels, own))
    return cover(hue_of(pixels), torch.zeros_like(hue), hue) * dilate(own, 2)


def is_white(pixels: Tensor) -> Tensor:
    """Of pixels (..., 3), which are white, or a little blurred."""
    return (pixels - 1).norm(dim=-1) < WHITE


def are_there(pixels: Tensor, ground: Tensor, trim: Tensor, foreground: Tensor) -> bool:
    """Whether a trim is more than what blur leaves along edges: a white border, or on white a shadow by itself."""
    least = MIN_AREA * trim.numel()
    if not is_white(ground):
        return bool((trim & is_white(pixels)).sum() >= least)
    far = trim & ~dilate(foreground & ~trim, 2)
    return bool(far.sum() >= least / 2) and len(regions(far, MIN_AREA / 4)) > 0  # one piece: it is not noise


def local_ground(pixels: Tensor, ground: Tensor, own: Tensor) -> Tensor:
    """What a region lies on, white or the ground: whichever is nearer to what is around it."""
    rim, white = dilate(own) & ~own, torch.ones_like(ground)
    if not rim.any():
        return ground
    around = pixels[rim].median(0).values
    return white if (around - white).norm() < (around - ground).norm() else ground


def in_style(pixels: Tensor, ground: Tensor, found: Found, own: Tensor) -> tuple[Found, Tensor]:
    """A thing, as a sticker if it has border and shadow, and the mask of what these explain.

    On white only the shadow can be seen, on black only the border; where both can, a thing with one is none of ours.
    """
    if found.shape is None or found.style != "flat":
        return found, torch.zeros_like(own)
    thing = Thing(found.shape, "red", found.size, found.x, found.y, radius_of(found.area), "sticker")
    paint, border, shadow = (each[0, 0, ..., None] for each in layers([Scene((thing,))], own.shape[0]))
    trim = torch.lerp(ground - shadow * (ground + 1), torch.ones_like(ground), border)
    sticker, flat = (torch.lerp(on, paint_of(pixels, own), paint) for on in (trim, ground))
    visible = ((trim - ground).norm(dim=-1) > VISIBLE) & ~dilate(own)
    there = []
    for half in (visible & (border > 0.5)[..., 0], visible & (border <= 0.5)[..., 0]):
        if half.sum() >= MIN_AREA * half.numel():
            error = _distance(sticker, pixels, half)
            there.append(error < min(NEAR, _distance(flat, pixels, half) / 2))
    if not any(there):
        return found, torch.zeros_like(own)
    named = replace(found, style="sticker") if all(there) else replace(found, shape=None)
    return named, dilate((border + shadow)[..., 0] > 0.05, 2)


def _distance(drawn: Tensor, pixels: Tensor, where: Tensor) -> float:
    """How far a picture is from a drawing (N, N, 3), sharp or as a decoder may blur it, on the mean over a mask."""
    width = 2 * (drawn.shape[0] // 64) + 1
    soft = avg_pool2d(drawn.permute(2, 0, 1), width, 1, width // 2, count_include_pad=False).permute(1, 2, 0)
    return min(float((each - pixels)[where].norm(dim=-1).mean()) for each in (drawn, soft))


def strangers(trim: Tensor, explained: Tensor) -> list[Found]:
    """What is neutral and of no sticker, lines and small pieces, too: nothing of ours."""
    found = []
    for part in regions(trim & ~explained, MIN_AREA * 2 / 3):
        rows, columns = part.nonzero().float().T
        area, size = float(part.float().mean()), part.shape[0]
        x, y = (float(places.mean() + 0.5) / size for places in (columns, rows))
        found.append(Found(None, None, size_of(radius_of(area)), x, y, area, 0.0))
    return found
