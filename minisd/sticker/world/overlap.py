"""Positions of two overlapping objects at which both remain recognisable."""

import math

import torch
from torch import Tensor

from minisd.sticker.world.shapes import extent, sdf

HIDDEN_SHARE = (0.14, 0.28)  # range of the hidden share of the rear object's area
MAX_HIDDEN_CONTOUR = 0.3  # share of its contour: with a whole side hidden, a smaller object would look the same
ATTEMPTS = 16  # candidates drawn at once
RING_HOLE_RADIUS = 0.49  # of a ring of area pi, see `shapes.ring`; the hole must be visible to tell ring from circle
GRID = 48  # points across the rear object at which the hidden share is measured
CONTOUR_WIDTH = 0.1  # points closer than this to the contour belong to it


def overlapping_positions(
    behind: str, radius: float, front: str, radius2: float, border: float, generator: torch.Generator
) -> list[tuple[float, float]]:
    """Centroids of an object and of one in front of it, both inside the canvas with `border` to its edge."""
    rear_extent = torch.tensor(extent(behind)).view(2, 2) * radius  # before and after, along x and y
    front_extent = torch.tensor(extent(front)).view(2, 2) * radius2
    while True:
        u = torch.rand(ATTEMPTS, 4, generator=generator)
        angle = 2 * math.pi * u[:, 0]
        offset = torch.stack([angle.cos(), angle.sin()], 1) * (radius + radius2) * (0.2 + u[:, 1:2])
        low = torch.maximum(rear_extent[:, 0], front_extent[:, 0] - offset) + border
        high = 1 - torch.maximum(rear_extent[:, 1], front_extent[:, 1] + offset) - border
        share = hidden_share(behind, radius, front, radius2, offset)
        if behind in ("circle", "ring"):
            hole = hidden_share("circle", RING_HOLE_RADIUS * radius, front, radius2, offset)
            share = torch.where(hole <= 0.25, share, 1)
        fits = (high >= low).all(1) & (share >= HIDDEN_SHARE[0]) & (share <= HIDDEN_SHARE[1])
        fits &= hidden_share(behind, radius, front, radius2, offset, contour=True) <= MAX_HIDDEN_CONTOUR
        if fits.any():
            k = int(fits.int().argmax())
            place = low[k] + (high[k] - low[k]) * u[k, 2:]
            x, y, x2, y2 = torch.cat([place, place + offset[k]]).tolist()
            return [(x, y), (x2, y2)]


def hidden_share(
    behind: str, radius: float, front: str, radius2: float, offset: Tensor, contour: bool = False
) -> Tensor:
    """The share of an object's area hidden by another one whose centroid is `offset` (N, 2) away: (N,).

    contour: the share of its contour instead.
    """
    axis = torch.linspace(-2.2, 2.2, GRID)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = sdf(behind, x, y)
    own = distance.abs() < CONTOUR_WIDTH if contour else distance < 0
    x, y = x[own], y[own]
    covered = sdf(front, (x * radius - offset[:, :1]) / radius2, (y * radius - offset[:, 1:]) / radius2) < 0
    return covered.float().mean(1)
