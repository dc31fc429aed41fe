"""What is in a picture: palette segmentation, connected components, analysis by synthesis; nothing learned.

A pixel on an edge is a mixture of object and background, and so is a blurred one; projecting it onto the line
between the two colours recovers the mixture, so areas, centroids and the comparison with our own drawings
survive blur.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from minisd.world.palette import BACKGROUNDS, COLOURS, PALETTE, PALETTE_LAB, delta_e, lab
from minisd.world.render import masks
from minisd.world.scene import SIZES, Scene, Thing
from minisd.world.shapes import THINGS

FOREGROUND = 12.0  # CIEDE2000 to the background, above which a pixel belongs to something
SAME_COLOUR = 18.0  # CIEDE2000 within which a colour has its palette name
MIN_AREA = 60 / 128**2  # of the canvas; smaller specks are not objects
MIXTURE = 0.35  # distance in RGB of [-1, 1] beyond which a pixel is no mixture of ground and paint
MIN_IOU, MIN_LEAD = 0.75, 0.03  # of the best template, and over the second best


@dataclass(frozen=True)
class Found:
    """An object, lengths in fractions of the canvas; a shape or colour that is none of ours is None."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    area: float
    iou: float  # with the template of the best shape


def components(mask: Tensor) -> Tensor:
    """Label the 8-connected regions of a boolean (H, W) mask: -> int64 (H, W), 0 outside, 1, 2, ... inside.

    Every pixel starts with its own number, takes the highest of its neighbours', then the one that pixel
    has by now (a jump to a pixel of the same region), until nothing changes.
    """
    inside = mask.float()
    label = inside * torch.arange(1, mask.numel() + 1, device=mask.device).view(mask.shape)
    while True:
        highest = max_pool2d(label[None], 3, 1, 1)[0] * inside
        jump = highest.flatten()[highest.flatten().long().clamp(min=1) - 1].view(mask.shape) * inside
        if torch.equal(jump, label):
            break
        label = jump
    numbers = label[mask].unique()
    return torch.where(mask, torch.searchsorted(numbers, label) + 1, 0)


def _regions(mask: Tensor, least: float = MIN_AREA) -> list[Tensor]:
    """The connected regions of a mask as masks, without those below a fraction `least` of the canvas."""
    labels = components(mask)
    areas = labels.flatten().bincount()
    return [labels == n for n in range(1, len(areas)) if areas[n] >= least * mask.numel()]


def find(image: Tensor) -> tuple[list[Found], str | None]:
    """All objects of a picture, (3, N, N) in [-1, 1], and its background (None: not one of ours)."""
    pixels = image.detach().float().cpu().clamp(-1, 1).permute(1, 2, 0)
    rim = max(1, pixels.shape[0] // 32)
    frame = torch.ones(pixels.shape[:2], dtype=torch.bool)
    frame[rim:-rim, rim:-rim] = False
    ground = pixels[frame].median(0).values
    foreground = delta_e(lab(pixels), lab(ground)) > FOREGROUND
    parts = [part for region in _regions(foreground) for part in _split(pixels, ground, region)]
    found = [_identify(pixels, ground, part) for part in parts]
    return [thing for thing in found if thing is not None], _name(ground, list(BACKGROUNDS))


def _split(pixels: Tensor, ground: Tensor, own: Tensor) -> list[Tensor]:
    """A region in parts of one paint each: what no mixture of paint and ground explains is another thing."""
    inner = pixels[_core(own)]
    name = delta_e(lab(inner)[:, None], PALETTE_LAB[: len(COLOURS)]).argmin(1)
    paint = inner[name == name.mode().values].median(0).values
    mixture = ground + _cover(pixels, ground, paint)[..., None] * (paint - ground)
    other = _erode(own & ((pixels - mixture).norm(dim=-1) > MIXTURE))
    if other.sum() < MIN_AREA / 4 * own.numel():
        return [own]
    other = _dilate(other) & own
    if (own & ~other).sum() < MIN_AREA * own.numel():  # noise: nothing is of one paint
        return [own]
    rest = [part for region in _regions(other) for part in _split(pixels, ground, region)]
    return _regions(own & ~other) + rest


def _cover(pixels: Tensor, ground: Tensor, paint: Tensor) -> Tensor:
    """How much paint is mixed into the ground in each pixel, in [0, 1]."""
    span = paint - ground
    return ((pixels - ground) @ span / span.square().sum().clamp(min=1e-6)).clamp(0, 1)


def _identify(pixels: Tensor, ground: Tensor, own: Tensor) -> Found | None:
    """Name the thing that fills a region: its colour from the core, its shape from our own drawings."""
    size = own.shape[0]
    paint = pixels[_core(own)].median(0).values
    cover = _cover(pixels, ground, paint) * _dilate(_dilate(own))
    area = float(cover.sum()) / cover.numel()
    if area < MIN_AREA:
        return None
    centres = (torch.arange(size) + 0.5) / size
    x, y = (float((cover.sum(axis) * centres).sum() / cover.sum()) for axis in (0, 1))
    radius = math.sqrt(area / math.pi)
    drawn = masks([Scene((Thing(shape, "red", "medium", x, y, radius),)) for shape in THINGS], size)[:, 0]
    soft = 2 * (size // 64) + 1
    drawn = torch.stack([drawn, avg_pool2d(drawn, soft, 1, soft // 2)])  # sharp, and as a decoder may blur it
    overlap = (torch.minimum(drawn, cover).sum((2, 3)) / torch.maximum(drawn, cover).sum((2, 3))).amax(0)
    best, second = overlap.topk(2).values.tolist()
    sure = best >= MIN_IOU and best - second >= MIN_LEAD
    shape = list(THINGS)[int(overlap.argmax())] if sure else None
    return Found(shape, _name(paint, list(COLOURS)), _size(radius), x, y, area, best)


def _name(colour: Tensor, names: list[str]) -> str | None:
    """The nearest palette colour, if it is near and among the names."""
    distance = delta_e(lab(colour), PALETTE_LAB)
    nearest = list(PALETTE)[int(distance.argmin())]
    return nearest if nearest in names and float(distance.min()) <= SAME_COLOUR else None


def _size(radius: float) -> str:
    """The size whose range is nearest, by area."""
    return min(SIZES, key=lambda size: abs(math.log(radius / math.sqrt(SIZES[size][0] * SIZES[size][1]))))


def _core(own: Tensor) -> Tensor:
    """The pixels furthest from the edge, where the paint is pure: eroded twice, if something is left."""
    for _ in range(2):
        smaller = _erode(own)
        if smaller.sum() < MIN_AREA / 4 * own.numel():
            break
        own = smaller
    return own


def _dilate(mask: Tensor) -> Tensor:
    return max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0


def _erode(mask: Tensor) -> Tensor:
    return ~_dilate(~mask)
