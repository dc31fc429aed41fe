"""Where two things overlap so that both are seen for what they are."""

import math

import torch
from torch import Tensor

from minisd.sticker.world.shapes import extent, sdf

HIDDEN = (0.14, 0.28)  # share of the area of the thing behind that is hidden
CONTOUR = 0.3  # the largest share of its contour: behind a whole side, a smaller thing would look the same
TRIES = 16  # at once
HOLE = 0.49  # radius of the hole of a ring of area pi, see `shapes.ring`; seen, it tells ring from circle
GRID = 48  # points across the thing behind, at which what is hidden is measured ...
NEAR = 0.1  # ... and the distance within which they are on its contour


def overlapping_places(
    behind: str, radius: float, front: str, radius2: float, border: float, generator: torch.Generator
) -> list[tuple[float, float]]:
    """The centroids of a thing and of one in front of it, both inside the canvas, `border` from its edge."""
    ours = torch.tensor(extent(behind)).view(2, 2) * radius  # before and after, along x and y
    theirs = torch.tensor(extent(front)).view(2, 2) * radius2
    while True:
        u = torch.rand(TRIES, 4, generator=generator)
        angle = 2 * math.pi * u[:, 0]
        offset = torch.stack([angle.cos(), angle.sin()], 1) * (radius + radius2) * (0.2 + u[:, 1:2])
        low = torch.maximum(ours[:, 0], theirs[:, 0] - offset) + border
        high = 1 - torch.maximum(ours[:, 1], theirs[:, 1] + offset) - border
        share = hidden_share(behind, radius, front, radius2, offset)
        if behind in ("circle", "ring"):
            share = torch.where(hidden_share("circle", HOLE * radius, front, radius2, offset) <= 0.25, share, 1)
        fits = (high >= low).all(1) & (share >= HIDDEN[0]) & (share <= HIDDEN[1])
        fits &= hidden_share(behind, radius, front, radius2, offset, contour=True) <= CONTOUR
        if fits.any():
            k = int(fits.int().argmax())
            place = low[k] + (high[k] - low[k]) * u[k, 2:]
            x, y, x2, y2 = torch.cat([place, place + offset[k]]).tolist()
            return [(x, y), (x2, y2)]


def hidden_share(
    behind: str, radius: float, front: str, radius2: float, offset: Tensor, contour: bool = False
) -> Tensor:
    """The share of a thing's area that one in front hides, whose centroid is `offset` (N, 2) from its own: (N,).

    contour: the share of its contour instead.
    """
    axis = torch.linspace(-2.2, 2.2, GRID)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = sdf(behind, x, y)
    own = distance.abs() < NEAR if contour else distance < 0
    x, y = x[own], y[own]
    covered = sdf(front, (x * radius - offset[:, :1]) / radius2, (y * radius - offset[:, 1:]) / radius2) < 0
    return covered.float().mean(1)
