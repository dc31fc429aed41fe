"""Fit rendered shapes to a coverage map, for objects whose area and centroid cannot be measured directly.

These are objects that are partly hidden, and outlines.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from minisd.sticker.world.render import WHOLE, Window, edge_distance
from minisd.sticker.world.shapes import extent
from minisd.sticker.world.styles import STYLE_EXTENT, paint_coverage

STEPS = 8  # of Gauss-Newton
STRIDE = 0.5 / 64  # of the finite differences
MAX_STEP = 2 / 64  # of each parameter


class Fit(NamedTuple):
    """Centroid and radius in fractions of the canvas, and the overlap (IoU) with the coverage map."""

    x: float
    y: float
    radius: float
    iou: float


def fit_shapes(
    cover: Tensor, shapes: list[str], style: str, starts: list[Fit], ignored: Tensor | None = None
) -> list[Fit]:
    """Fit centroid and radius of each shape to a coverage map (N, N) in [0, 1], from a start each.

    ignored: a mask of pixels that do not count.
    """
    size = cover.shape[0]
    use = torch.ones_like(cover) if ignored is None else 1.0 - ignored.float()
    current = torch.tensor([start[:3] for start in starts])
    low = current * torch.tensor([0, 0, 0.5])
    high = torch.cat([torch.ones(len(shapes), 2), 2 * current[:, 2:]], 1)
    varied = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]) * STRIDE
    for _ in range(STEPS):
        window = _window_around(shapes, style, current, size)  # outside of it there is no slope
        drawn = draw_coverage(shapes, style, current[:, None] + varied, size, window) * use[window]  # (K, 7, ...)
        slope = (drawn[:, 1:4] - drawn[:, 4:]).flatten(2) / 2
        error = ((cover * use)[window] - drawn[:, 0]).flatten(1)
        normal = slope @ slope.mT + 0.1 * torch.eye(3)
        step = torch.linalg.solve(normal, slope @ error[..., None])[..., 0] * STRIDE
        current = torch.maximum(torch.minimum(current + step.clamp(-MAX_STEP, MAX_STEP), high), low)
    final = draw_coverage(shapes, style, current[:, None], size)[:, 0] * use
    scores = coverage_iou(final, cover * use, blur_mask=use).tolist()
    return [Fit(x, y, radius, score) for (x, y, radius), score in zip(current.tolist(), scores, strict=True)]


def _window_around(shapes: list[str], style: str, places: Tensor, size: int) -> Window:
    """The rows and columns that contain each shape at its place (K, 3), also when it is varied by STRIDE."""
    x, y, radius = places.T
    left, right, up, down = torch.tensor([extent(shape) for shape in shapes]).T * radius
    margin = max(STYLE_EXTENT[style]) + 2 * STRIDE + 1 / size

    def between(low: Tensor, high: Tensor) -> slice:
        first, last = size * (float(low.min()) - margin), size * (float(high.max()) + margin)
        return slice(max(0, math.floor(first)), math.ceil(last))

    return between(y - up, y + down), between(x - left, x + right)


def draw_coverage(shapes: list[str], style: str, places: Tensor, size: int, window: Window = WHOLE) -> Tensor:
    """Draw each shape at places (K, M, 3) of x, y and radius: its coverage in a window, (K, M, rows, columns)."""
    distances = [edge_distance(shape, some, size, window) for shape, some in zip(shapes, places, strict=True)]
    return paint_coverage(torch.stack(distances), style, size)


def coverage_iou(drawn: Tensor, cover: Tensor, blur_mask: Tensor | float = 1.0) -> Tensor:
    """IoU of drawings (K, N, N), sharp or blurred as by a decoder (the larger), with a coverage (N, N): (K,)."""
    width = 2 * (cover.shape[0] // 64) + 1
    both = torch.stack([drawn, avg_pool2d(drawn, width, 1, width // 2) * blur_mask])
    return (torch.minimum(both, cover).sum((2, 3)) / torch.maximum(both, cover).sum((2, 3))).amax(0)


def equivalent_radius(area: float) -> float:
    """The radius of the disc with that area."""
    return math.sqrt(area / math.pi)
