"""Find place and size of things whose area and centroid do not show: drawn over, or only outlined."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from minisd.sticker.world.render import layers
from minisd.sticker.world.scene import Scene, Thing

STEPS = 8  # of Gauss-Newton
STRIDE = 0.5 / 64  # by which a parameter is varied to see what changes
LONGEST = 2 / 64  # that a parameter moves in a step


class Fit(NamedTuple):
    """A thing as it fits best, lengths in fractions of the canvas, and its overlap with what is there (IoU)."""

    x: float
    y: float
    radius: float
    iou: float


def fit(cover: Tensor, shapes: list[str], style: str, starts: list[Fit], ignored: Tensor | None = None) -> list[Fit]:
    """For each shape its best place and radius under a picture's coverage (N, N) in [0, 1], looked for from its start;
    what is ignored may be anything.
    """
    size = cover.shape[0]
    use = torch.ones_like(cover) if ignored is None else 1.0 - ignored.float()
    here = torch.tensor([start[:3] for start in starts])
    low, high = here * torch.tensor([0, 0, 0.5]), torch.cat([torch.ones(len(shapes), 2), 2 * here[:, 2:]], 1)
    varied = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]) * STRIDE
    for _ in range(STEPS):
        drawn = draw(shapes, style, here[:, None] + varied, size) * use  # (K, 7, N, N)
        slope = (drawn[:, 1:4] - drawn[:, 4:]).flatten(2) / 2
        error = (cover * use - drawn[:, 0]).flatten(1)
        normal = slope @ slope.mT + 0.1 * torch.eye(3)
        step = torch.linalg.solve(normal, slope @ error[..., None])[..., 0] * STRIDE
        here = torch.maximum(torch.minimum(here + step.clamp(-LONGEST, LONGEST), high), low)
    final = draw(shapes, style, here[:, None], size)[:, 0] * use
    scores = agreement(final, cover * use, soft=use).tolist()
    return [Fit(x, y, radius, score) for (x, y, radius), score in zip(here.tolist(), scores, strict=True)]


def draw(shapes: list[str], style: str, rows: Tensor, size: int) -> Tensor:
    """Things of each shape at rows (K, M, 3) of x, y and radius: their coverage (K, M, size, size)."""
    scenes = [
        Scene((Thing(shape, "red", "medium", x, y, radius, style),))
        for shape, some in zip(shapes, rows.tolist(), strict=True)
        for x, y, radius in some
    ]
    return layers(scenes, size).paint.view(*rows.shape[:2], size, size)


def agreement(drawn: Tensor, cover: Tensor, soft: Tensor | float = 1.0) -> Tensor:
    """IoU of drawings (K, N, N), sharp or as a decoder may blur them, with a coverage (N, N): (K,)."""
    width = 2 * (cover.shape[0] // 64) + 1
    both = torch.stack([drawn, avg_pool2d(drawn, width, 1, width // 2) * soft])
    return (torch.minimum(both, cover).sum((2, 3)) / torch.maximum(both, cover).sum((2, 3))).amax(0)


def radius_of(area: float) -> float:
    """Of the disc with that area."""
    return math.sqrt(area / math.pi)
