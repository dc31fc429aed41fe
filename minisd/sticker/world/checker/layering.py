"""Of two things that touch: are they beside each other, or is one in front of the other?"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from minisd.sticker.world.checker.fitting import Fit, draw, fit, radius_of
from minisd.sticker.world.checker.recognise import Found, identify, paint_of, size_of, surest
from minisd.sticker.world.checker.regions import MIN_AREA, MIXTURE, cover, dilate, erode, unlike
from minisd.sticker.world.shapes import THINGS

TOUCHING = 0.03  # share of the smaller thing that the other hides; below, the two are beside each other
TOWARDS = (0, 0.25)  # shares of the way to the thing in front, where a fit of the other begins
LEAD = 0.015  # of the best fit of what is hidden: less of its contour shows
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
        around = dilate(torch.stack(parts).any(0), 2)
        orders = [_layered(pixels, ground, *order, around) for order in ((first, second), (second, first))]
        closest = min((order for order in orders if order is not None), key=lambda order: order[0], default=None)
        if closest is not None:
            whole, other = closest[1]
            if other.hidden * other.area >= TOUCHING * min(other.area, whole.area):
                return [whole, other]
    return [found for _, found in plain]


def _layered(
    pixels: Tensor, ground: Tensor, front: Tensor, behind: Tensor, around: Tensor
) -> tuple[float, tuple[Found, Found]] | None:
    """How far the picture, in the mask `around`, is from one thing in front of the other, and the two things.

    None if the first is no thing of ours, or if there is more than the two.
    """
    paint, other, near = paint_of(pixels, front), paint_of(pixels, behind), dilate(front, 2)
    off, off_other = unlike(pixels, ground, paint), unlike(pixels, ground, other)
    covered = cover(pixels, ground, paint)
    covered = torch.where(dilate(behind, 2), torch.minimum(covered, cover(pixels, other, paint)), covered)  # the seam
    covered = covered * (near & ((off <= off_other) | (off_other > MIXTURE)))  # without the faint edge of the other
    first = identify(pixels, ground, front, covered)
    if first is None or first.shape is None:
        return None
    size, names = front.shape[0], list(THINGS)
    whole = draw([first.shape], first.style, _row(first), size)[0, 0]
    visible = cover(pixels, ground, other) * (dilate(behind, 2) & (off_other <= off))
    second = identify(pixels, ground, behind)
    if second is None:
        return None
    radius, seam, tries = radius_of(second.area * 1.2), dilate(whole > 0, 2), []
    for share in TOWARDS:  # what is hidden of it lies that way
        x, y = second.x + share * (first.x - second.x), second.y + share * (first.y - second.y)
        tries.append(fit(visible, names, "flat", [Fit(x, y, radius, 0)] * len(names), seam))
    best, sure = surest([max(some, key=lambda each: each.iou) for some in zip(*tries, strict=True)], LEAD)
    places = [each[best] for each in tries]
    drawings = draw([names[best]], "flat", torch.tensor([[place[:3] for place in places]]), size)[0]
    pictures = torch.lerp(torch.lerp(ground, other, drawings[..., None]), paint, whole[..., None])
    wrong = (pictures - pixels).norm(dim=-1) * around
    k = int(wrong.sum((1, 2)).argmin())
    if erode(wrong[k] > UNLIKE).sum() >= MIN_AREA / 4 * around.numel():
        return None
    x, y, radius, iou = places[k]
    second = replace(second, shape=names[best] if sure else None, size=size_of(radius), x=x, y=y, iou=iou)
    hidden = float((drawings[k] * whole).sum() / drawings[k].sum().clamp(min=1e-6))
    second = replace(second, area=math.pi * radius**2, hidden=hidden)
    return float(wrong[k][around].mean()), (first, second)


def _row(found: Found) -> Tensor:
    return torch.tensor([[[found.x, found.y, radius_of(found.area)]]])
