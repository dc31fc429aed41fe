"""The shapes of Sticker World as signed distance functions: negative inside, positive outside.

Each function draws around the origin with y downwards. `sdf` normalises them: the centroid is at the origin and the
area is that of the unit disc, so that `radius` means the same painted area for every shape.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


def circle(x: Tensor, y: Tensor) -> Tensor:
    """The unit disc."""
    return torch.hypot(x, y) - 1


def ring(x: Tensor, y: Tensor) -> Tensor:
    """The unit disc with a hole of less than half its width."""
    return (torch.hypot(x, y) - 0.72).abs() - 0.28


def square(x: Tensor, y: Tensor) -> Tensor:
    """A square with sides of length 2."""
    return _box(x, y, 1, 1)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """An equilateral triangle, one tip up: a star of three points whose valleys are on straight sides."""
    return _star(x, y, points=3, valley=0.5)


def star(x: Tensor, y: Tensor) -> Tensor:
    """A star of five points, one up."""
    return _star(x, y, points=5, valley=0.5)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner with a half disc on each of its two upper sides."""
    u = (x.abs() + y) * math.sqrt(0.5)  # along the upper right side, and v across it
    v = (x.abs() - y) * math.sqrt(0.5)
    disc = torch.hypot(u, v - 1) - 1
    return torch.minimum(disc, _box(u, v, 1, 1))


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Two bars a third as wide as long: a union of two rectangles."""
    return torch.minimum(_box(x, y, 1, 1 / 3), _box(x, y, 1 / 3, 1))


def diamond(x: Tensor, y: Tensor) -> Tensor:
    """A rhombus on its tip, 1.5 times as tall as wide."""
    return _polygon(x, y, [(0, -1.2), (0.8, 0), (0, 1.2), (-0.8, 0)])


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    """A rectangle around the origin."""
    dx, dy = x.abs() - half_width, y.abs() - half_height
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0)


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """A convex polygon, corners clockwise on the screen: distance to the nearest edge, signed by the half planes."""
    nearest, side = torch.full_like(x, math.inf), torch.full_like(x, -math.inf)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        dx, dy = x - ax, y - ay
        t = ((dx * ex + dy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(dx - t * ex, dy - t * ey))
        side = torch.maximum(side, (dx * -ey + dy * ex) / -math.hypot(ex, ey))
    return torch.where(side > 0, nearest, -nearest)


def _star(x: Tensor, y: Tensor, points: int, valley: float) -> Tensor:
    """A star with tips at distance 1 and valleys at `valley`, folded onto one half of one of its points."""
    distance, sector = torch.hypot(x, y), 2 * math.pi / points
    angle = torch.atan2(x, -y)  # from the upward tip
    angle = (angle - sector * torch.round(angle / sector)).abs()
    along, across = distance * torch.cos(angle), distance * torch.sin(angle)
    ex, ey = valley * math.cos(sector / 2) - 1, valley * math.sin(sector / 2)  # the edge, from tip to valley
    dx = along - 1
    t = ((dx * ex + across * ey) / (ex * ex + ey * ey)).clamp(0, 1)
    outside = torch.sign(dx * ey - across * ex)
    return outside * torch.hypot(dx - t * ex, across - t * ey)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    shape.__name__: shape for shape in (circle, square, triangle, star, heart, ring, cross, diamond)
}


class Extent(NamedTuple):
    """Distances from the centroid to the four sides."""

    left: float
    right: float
    up: float
    down: float


@cache
def _measure(shape: str) -> tuple[float, float, float, Extent]:
    """Centroid x and y, equivalent radius and extent of a shape before normalisation, measured on a fine grid."""
    step = 1 / 256
    axis = torch.arange(-2 + step / 2, 2, step)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cover = (0.5 - SHAPES[shape](x, y) / step).clamp(0, 1)
    area = cover.double().sum()
    cx, cy = float((cover * x).double().sum() / area), float((cover * y).double().sum() / area)
    radius = math.sqrt(float(area) * step * step / math.pi)
    columns, rows = axis[cover.amax(0) > 0.5], axis[cover.amax(1) > 0.5]
    left, right = cx - float(columns[0]), float(columns[-1]) - cx
    up, down = cy - float(rows[0]), float(rows[-1]) - cy
    return cx, cy, radius, Extent(left / radius, right / radius, up / radius, down / radius)


def extent(shape: str) -> Extent:
    """The extent of a shape of radius 1."""
    return _measure(shape)[3]


def sdf(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the shape with its centroid at the origin and the area of the unit disc."""
    cx, cy, radius, _ = _measure(shape)
    return SHAPES[shape](x * radius + cx, y * radius + cy) / radius
