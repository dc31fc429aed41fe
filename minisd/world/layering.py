"""Of two things that touch: are they beside each other, or is one in front of the other?"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from minisd.world.fitting import Fit, draw, fit, radius_of
from minisd.world.recognise import Found, identify, paint_of, size_of, surest
from minisd.world.regions import MIN_AREA, cover, dilate, erode
from minisd.world.shapes import THINGS

LEAST_HIDDEN = 0.1  # share of a thing; below, the two touch
TOWARDS = (0, 0.25)  # shares of the way to the thing in front, where a fit of the other begins
LEAD = 0.015  # of the best fit of what is hidden: less of its contour shows
MIXTURE = 0.35  # distance in RGB of [-1, 1] beyond which a pixel is no mixture of ground and paint
UNLIKE = 0.8  # distance in RGB of [-1, 1] from how a pixel should be, beyond what blur does


def told_apart(pixels: Tensor, ground: Tensor, parts: list[Tensor]) -> list[Found]:
    """The things that parts (N, N) of one region of pixels (N, N, 3) show.

    Each is plain at first. If there are two colours, either could be in front: the thing in front is whole, and what is
    left of the other must fit around it. The order counts whose drawing is closer to the picture, and explains it: blur
    leaves lines where the two meet, which are no third thing.
    """
    plain = [(part, found) for part in parts if (found := identify(pixels, ground, part)) is not None]
    pieces: dict[str, Tensor] = {}
    for part, found in plain:  # what is behind may show on both sides
        if found.colour is not None:
            pieces[found.colour] = pieces.get(found.colour, part) | part
    if len(pieces) > 1:
        first, second = sorted(pieces.values(), key=lambda piece: -int(piece.sum()))[:2]
        orders = [_layered(pixels, ground, *order) for order in ((first, second), (second, first))]
        closest = min((order for order in orders if order is not None), key=lambda order: order[0], default=None)
        if closest is not None and closest[1][1].hidden >= LEAST_HIDDEN:
            return list(closest[1])
    return [found for _, found in plain]


def _layered(pixels: Tensor, ground: Tensor, front: Tensor, behind: Tensor) -> tuple[float, tuple[Found, Found]] | None:
    """How far the picture is from one of the things in front of the other, and the two; None if the first is none."""
    paint, other, near = paint_of(pixels, front), paint_of(pixels, behind), dilate(front, 2)
    off, off_other = _unlike(pixels, ground, paint), _unlike(pixels, ground, other)
    covered = cover(pixels, ground, paint)
    covered = torch.where(dilate(behind, 2), torch.minimum(covered, cover(pixels, other, paint)), covered)  # the seam
    covered = covered * (near & ((off <= off_other) | (off_other > MIXTURE)))  # without the faint edge of the other
    first = identify(pixels, ground, front, covered)
    if first is None or first.shape is None:
        return None
    size = front.shape[0]
    whole = draw([first.shape], first.style, _row(first), size)[0, 0]
    visible = cover(pixels, ground, other) * (dilate(behind, 2) & (off_other <= off))
    start = identify(pixels, ground, behind)
    if start is None:
        return None
    radius, around, tries = radius_of(start.area * 1.2), dilate(whole > 0, 2), []
    for share in TOWARDS:  # what is hidden of it lies that way
        x, y = start.x + share * (first.x - start.x), start.y + share * (first.y - start.y)
        tries.append(fit(visible, list(THINGS), "flat", Fit(x, y, radius, 0), around))
    fits = [max(some, key=lambda each: each.iou) for some in zip(*tries, strict=True)]
    best, sure = surest(fits, LEAD)
    x, y, radius, iou = fits[best]
    rest = draw([list(THINGS)[best]], "flat", torch.tensor([[[x, y, radius]]]), size)[0, 0]
    hidden = float((rest * whole).sum() / rest.sum().clamp(min=1e-6))
    second = replace(start, shape=list(THINGS)[best] if sure else None, size=size_of(radius), x=x, y=y)
    second = replace(second, area=math.pi * radius**2, iou=iou, hidden=hidden)
    picture = torch.lerp(torch.lerp(ground, other, rest[..., None]), paint, whole[..., None])
    wrong = (picture - pixels).norm(dim=-1)
    if erode(wrong > UNLIKE).sum() >= MIN_AREA / 4 * wrong.numel():
        return None
    return float(wrong[dilate(front | behind, 2)].mean()), (first, second)


def _unlike(pixels: Tensor, ground: Tensor, paint: Tensor) -> Tensor:
    """How far each pixel is from the mixtures of paint and ground."""
    return (pixels - torch.lerp(ground, paint, cover(pixels, ground, paint)[..., None])).norm(dim=-1)


def _row(found: Found) -> Tensor:
    return torch.tensor([[[found.x, found.y, radius_of(found.area)]]])
