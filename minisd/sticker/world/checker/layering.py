"""Tell whether two objects that touch are beside each other or one is in front of the other."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from minisd.sticker.world.checker.fitting import Fit, draw_coverage, equivalent_radius, fit_shapes
from minisd.sticker.world.checker.recognise import Detection, best_fit, identify, region_colour, size_name
from minisd.sticker.world.checker.regions import (
    MAX_MIXTURE_DISTANCE,
    MIN_AREA,
    dilate,
    erode,
    mixture_distance,
    paint_fraction,
)
from minisd.sticker.world.shapes import SHAPES

MIN_OVERLAP = 0.03  # hidden share of the smaller object; below it the two are beside each other
STARTS = (0, 0.25)  # shares of the way to the front object at which fits of the rear object start
MIN_LEAD = 0.015  # of the best fit of the rear object: less of its contour is visible
MAX_ERROR = 0.8  # distance in RGB of [-1, 1] between a pixel and its explanation, beyond the effect of blur


def separate_objects(pixels: Tensor, background: Tensor, parts: list[Tensor]) -> list[Detection]:
    """The objects shown by parts (N, N) of one region of pixels (N, N, 3).

    Each part is identified alone first. If there are two colours, both orders are tried: the front object is complete,
    and the rest of the rear object must fit around it. The order counts whose drawing is closer to the image, and it
    explains the whole region: blur leaves lines between the two objects, which are no third object.
    """
    plain = [(part, found) for part in parts if (found := identify(pixels, background, part)) is not None]
    pieces: dict[str, Tensor] = {}
    for part, found in plain:  # the rear object may be visible on both sides of the front object
        if found.colour is not None:
            pieces[found.colour] = pieces.get(found.colour, part) | part
    if len(pieces) > 1:
        first, second = sorted(pieces.values(), key=lambda piece: -int(piece.sum()))[:2]
        around = dilate(torch.stack(parts).any(0), 2)
        orders = [_explain(pixels, background, *order, around) for order in ((first, second), (second, first))]
        closest = min((order for order in orders if order is not None), key=lambda order: order[0], default=None)
        if closest is not None:
            front, rear = closest[1]
            if rear.hidden * rear.area >= MIN_OVERLAP * min(rear.area, front.area):
                return [front, rear]
    return [found for _, found in plain]


def _explain(
    pixels: Tensor, background: Tensor, front: Tensor, behind: Tensor, around: Tensor
) -> tuple[float, tuple[Detection, Detection]] | None:
    """Explain the image as one object in front of another: the mean error in the mask `around`, and the two objects.

    None if the front object is not recognised, or if there is more than the two objects.
    """
    paint, rear_paint, near = region_colour(pixels, front), region_colour(pixels, behind), dilate(front, 2)
    error, rear_error = (mixture_distance(pixels, background, each) for each in (paint, rear_paint))
    coverage = paint_fraction(pixels, background, paint)
    seam = torch.minimum(coverage, paint_fraction(pixels, rear_paint, paint))
    coverage = torch.where(dilate(behind, 2), seam, coverage)
    coverage = coverage * (near & ((error <= rear_error) | (rear_error > MAX_MIXTURE_DISTANCE)))
    first = identify(pixels, background, front, coverage)
    if first is None or first.shape is None:
        return None
    size, names = front.shape[0], list(SHAPES)
    row = torch.tensor([[[first.x, first.y, equivalent_radius(first.area)]]])
    whole = draw_coverage([first.shape], first.style, row, size)[0, 0]
    visible = paint_fraction(pixels, background, rear_paint) * (dilate(behind, 2) & (rear_error <= error))
    second = identify(pixels, background, behind)
    if second is None:
        return None
    radius, hidden_area, attempts = equivalent_radius(second.area * 1.2), dilate(whole > 0, 2), []
    for share in STARTS:  # the hidden part is in the direction of the front object
        x, y = second.x + share * (first.x - second.x), second.y + share * (first.y - second.y)
        attempts.append(fit_shapes(visible, names, "flat", [Fit(x, y, radius, 0)] * len(names), hidden_area))
    best_of_each = [max(some, key=lambda each: each.iou) for some in zip(*attempts, strict=True)]
    best, certain = best_fit(best_of_each, MIN_LEAD)
    places = [each[best] for each in attempts]
    drawings = draw_coverage([names[best]], "flat", torch.tensor([[place[:3] for place in places]]), size)[0]
    explained = torch.lerp(torch.lerp(background, rear_paint, drawings[..., None]), paint, whole[..., None])
    wrong = (explained - pixels).norm(dim=-1) * around
    k = int(wrong.sum((1, 2)).argmin())
    if erode(wrong[k] > MAX_ERROR).sum() >= MIN_AREA / 4 * around.numel():
        return None
    x, y, radius, iou = places[k]
    shape = names[best] if certain else None
    hidden = float((drawings[k] * whole).sum() / drawings[k].sum().clamp(min=1e-6))
    area = math.pi * radius**2
    second = replace(second, shape=shape, size=size_name(radius), x=x, y=y, iou=iou, area=area, hidden=hidden)
    return float(wrong[k][around].mean()), (first, second)
