"""What a picture of Sticker World shows: one thing, two, or several of a kind on a plain background, by a seed.

Lengths are fractions of the canvas, x to the right and y downwards; (x, y) is a thing's centroid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from minisd.world.palette import BACKGROUNDS, COLOURS
from minisd.world.shapes import THINGS, extent

Choice = TypeVar("Choice")
# Ranges of the radius (of the disc with the same area), with gaps. Medium is what goes without saying.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.08, 0.095),
    "medium": (0.12, 0.14),
    "large": (0.175, 0.205),
}
RELATIONS = ("left of", "right of", "above", "below")
# How many of a kind there is room for.
CROWDS: dict[str, tuple[int, ...]] = {"small": (2, 3, 4, 5), "medium": (2, 3)}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

BORDER = 0.03  # between things and the edge of the canvas
GAP = 0.06  # between two things
MARGIN = 0.25  # centroids of two things are this far apart in the direction of their relation ...
SLANT = 0.7  # ... and at most this fraction of it in the other direction


@dataclass(frozen=True)
class Thing:
    """One thing; `size` names the range that `radius` was drawn from."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Things, later ones in front of earlier ones, on a background."""

    things: tuple[Thing, ...]
    background: str = "white"

    @property
    def alike(self) -> bool:
        """Whether it shows several things of one kind, which are counted, not told apart."""
        return len(self.things) > 1 and len({(thing.shape, thing.colour) for thing in self.things}) == 1

    @property
    def relation(self) -> str | None:
        """How the first of two things stands to the second; None for another number of things, or two of a kind."""
        if len(self.things) != 2 or self.alike:
            return None
        first, second = self.things
        return relation(first.x, first.y, second.x, second.y)


def relation(x1: float, y1: float, x2: float, y2: float) -> str:
    """How a thing at (x1, y1) stands to one at (x2, y2): the direction in which they are further apart."""
    if abs(x1 - x2) >= abs(y1 - y2):
        return "left of" if x1 < x2 else "right of"
    return "above" if y1 < y2 else "below"


def position(x: float, y: float, clearance: float = 0.0) -> tuple[str, str] | None:
    """The cell of the 3x3 grid as ("top", "left"); None closer than `clearance` to a border between cells."""
    if min(abs(v - border) for v in (x, y) for border in (1 / 3, 2 / 3)) < clearance:
        return None
    return ("top", "middle", "bottom")[min(int(y * 3), 2)], ("left", "middle", "right")[min(int(x * 3), 2)]


def scene_from_seed(seed: int, two: float = 0.4, several: float = 0.1, white: float = 0.55) -> Scene:
    """The scene of a seed; see sample_scene."""
    return sample_scene(torch.Generator().manual_seed(seed), two, several, white)


def sample_scene(generator: torch.Generator, two: float = 0.4, several: float = 0.1, white: float = 0.55) -> Scene:
    """Draw a scene: two things with probability `two`, two to five of a kind with probability `several`, or one.

    The background is white with probability `white`.

    Sizes come before places, and places are built so that they fit: rejection would make large things rare.
    The places are never ambiguous: see BORDER, GAP, MARGIN and SLANT.
    """
    draws = iter(torch.rand(16, generator=generator).tolist())
    others = [name for name in BACKGROUNDS if name != "white"]
    u = next(draws)
    background = "white" if u < white else _pick(others, (u - white) / (1 - white))
    v = next(draws)
    count = 2 if v < two else 1
    if two <= v < two + several:
        return Scene(_crowd(generator, [next(draws) for _ in range(4)]), background)

    kinds = [(_pick(list(THINGS), next(draws)), _pick(list(COLOURS), next(draws))) for _ in range(2)][:count]
    if count == 2 and kinds[0] == kinds[1]:  # two of a kind need counting words
        shape, colour = kinds[1]
        others = [name for name in COLOURS if name != colour]
        kinds[1] = (shape, _pick(others, next(draws)))
    sizes = [_pick(list(SIZES), next(draws))]
    if count == 2:  # next to a large one there is only room for a small one
        beside = {"small": ["small", "medium", "large"], "medium": ["small", "medium"], "large": ["small"]}
        sizes.append(_pick(beside[sizes[0]], next(draws)))
    radii = [low + (high - low) * next(draws) for low, high in (SIZES[size] for size in sizes)]

    if count == 1:
        places = [
            _anywhere(shape, radius, next(draws), next(draws)) for (shape, _), radius in zip(kinds, radii, strict=True)
        ]
    else:
        places = _beside(kinds[0][0], radii[0], kinds[1][0], radii[1], [next(draws) for _ in range(5)])
    return Scene(
        tuple(Thing(*kind, size, *xy, r) for kind, size, xy, r in zip(kinds, sizes, places, radii, strict=True)),
        background,
    )


def _crowd(generator: torch.Generator, draws: list[float]) -> tuple[Thing, ...]:
    """Things of one kind and size, their boxes GAP apart: the number first, then a size that leaves room for it."""
    shape, colour = _pick(list(THINGS), draws[0]), _pick(list(COLOURS), draws[1])
    count = _pick([2, 3, 4, 5], draws[2])
    size = _pick([size for size, numbers in CROWDS.items() if count in numbers], draws[3])
    low, high = SIZES[size]
    reach = torch.tensor(extent(shape)).view(2, 2)  # before and after, along x and y
    while True:
        u = torch.rand(256, count, 3, generator=generator)  # tries at once
        radius = low + (high - low) * u[..., :1]
        start, stop = BORDER + reach[:, 0] * radius, 1 - BORDER - reach[:, 1] * radius
        centre = start + (stop - start) * u[..., 1:]
        before, after = centre - reach[:, 0] * radius, centre + reach[:, 1] * radius
        apart = (before[:, :, None] - after[:, None] >= GAP).any(-1)  # i begins after j, along x or y
        fits = (apart | apart.mT | torch.eye(count, dtype=torch.bool)).all((1, 2))
        if fits.any():
            chosen = int(fits.int().argmax())
            rows = torch.cat([centre, radius], -1)[chosen].tolist()
            return tuple(Thing(shape, colour, size, *row) for row in rows)


def _room(shape: str, radius: float, axis: int) -> tuple[float, float]:
    """Where the centroid may be, along x (axis 0) or y (1), with the thing inside the canvas."""
    before, after = extent(shape)[2 * axis : 2 * axis + 2]
    return BORDER + before * radius, 1 - BORDER - after * radius


def _anywhere(shape: str, radius: float, u: float, v: float) -> tuple[float, float]:
    (left, right), (top, bottom) = _room(shape, radius, 0), _room(shape, radius, 1)
    return left + (right - left) * u, top + (bottom - top) * v


def _beside(shape: str, radius: float, shape2: str, radius2: float, draws: list[float]) -> list[tuple[float, float]]:
    """Two centroids in a relation that nobody would dispute (MARGIN, SLANT), without touching (GAP).

    Built, not rejected: every relation is equally likely whatever the sizes.
    """
    u, *draws = draws
    axis, swap = divmod(int(u * 4), 2)
    if swap:
        shape, radius, shape2, radius2 = shape2, radius2, shape, radius
    start, _ = _room(shape, radius, axis)
    _, stop = _room(shape2, radius2, axis)
    reach = extent(shape)[2 * axis + 1] * radius + extent(shape2)[2 * axis] * radius2
    least = max(reach + GAP, MARGIN)
    near, far = sorted(draws[:2])
    a = start + (stop - start - least) * near
    apart = least + (stop - start - least) * (far - near)

    low, high = _room(shape, radius, 1 - axis)
    across = low + (high - low) * draws[2]
    low, high = _room(shape2, radius2, 1 - axis)
    low, high = max(low, across - SLANT * apart), min(high, across + SLANT * apart)
    across2 = low + (high - low) * draws[3]

    places = [(a, across), (a + apart, across2)] if axis == 0 else [(across, a), (across2, a + apart)]
    return places[::-1] if swap else places


def _pick(choices: Sequence[Choice], u: float) -> Choice:
    return choices[min(int(u * len(choices)), len(choices) - 1)]
