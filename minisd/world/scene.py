"""What a picture of Sticker World shows: one thing, two, or several of a kind on a plain background, by a seed.
Two may overlap, and a thing may be drawn in another style than flat, where that is asked for.

Lengths are fractions of the canvas, x to the right and y downwards; (x, y) is a thing's centroid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from minisd.world.overlap import overlapping_places
from minisd.world.palette import BACKGROUNDS, COLOURS
from minisd.world.shapes import THINGS, Extent, extent
from minisd.world.styles import HALO, styles_for

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
LAYERS = ("in front of", "behind")  # how one of two things that overlap stands to the other
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
INVERSE |= {"in front of": "behind", "behind": "in front of"}

BORDER = 0.03  # between things and the edge of the canvas
GAP = 0.06  # between two things
MARGIN = 0.25  # centroids of two things are this far apart in the direction of their relation ...
SLANT = 0.7  # ... and at most this fraction of it in the other direction
BESIDE = {"small": ["small", "medium", "large"], "medium": ["small", "medium"], "large": ["small"]}  # sizes with room
BEFORE = {"medium": ["small", "medium", "large"], "large": ["medium", "large"]}  # hiding neither nothing nor all
PATIENCE = 4  # batches of tries for several of a kind in a style, before they are flat


@dataclass(frozen=True)
class Thing:
    """One thing; `size` names the range that `radius` was drawn from."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    style: str = "flat"

    @property
    def reach(self) -> Extent:
        """How far it extends from its centroid, border and shadow included."""
        return _reach(self.shape, self.radius, self.style)


@dataclass(frozen=True)
class Scene:
    """Things, later ones in front of earlier ones, on a background.

    overlapping: of two things, whether the second hides part of the first; else they are apart.
    """

    things: tuple[Thing, ...]
    background: str = "white"
    overlapping: bool = False

    @property
    def alike(self) -> bool:
        """Whether it shows several things of one kind, which are counted, not told apart."""
        return len(self.things) > 1 and len({(thing.shape, thing.colour) for thing in self.things}) == 1

    @property
    def relation(self) -> str | None:
        """How the first of two things stands to the second; None for another number of things, or two of a kind."""
        if len(self.things) != 2 or self.alike:
            return None
        if self.overlapping:
            return "behind"
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


def scene_from_seed(
    seed: int,
    two: float = 0.4,
    several: float = 0.1,
    white: float = 0.55,
    styled: float = 0.0,
    overlapping: float = 0.0,
) -> Scene:
    """The scene of a seed; see sample_scene."""
    return sample_scene(torch.Generator().manual_seed(seed), two, several, white, styled, overlapping)


def sample_scene(
    generator: torch.Generator,
    two: float = 0.4,
    several: float = 0.1,
    white: float = 0.55,
    styled: float = 0.0,
    overlapping: float = 0.0,
) -> Scene:
    """Draw a scene: two things with probability `two`, two to five of a kind with probability `several`, or one.

    The background is white with probability `white`. A thing, or several of a kind, has another style than flat with
    probability `styled`, where there is room for it; two things overlap with probability `overlapping`, and are flat
    then. With both at 0 nothing is drawn for them, so a seed is the scene that it was before they came into the world.

    Sizes come before places, and places are built so that they fit: rejection would make large things rare.
    The places are never ambiguous: see BORDER, GAP, MARGIN and SLANT.
    """
    draws = iter(torch.rand(16, generator=generator).tolist())
    later = torch.rand(4, generator=generator).tolist() if styled or overlapping else [1.0] * 4
    others = [name for name in BACKGROUNDS if name != "white"]
    u = next(draws)
    background = "white" if u < white else _pick(others, (u - white) / (1 - white))
    v = next(draws)
    count = 2 if v < two else 1
    if two <= v < two + several:
        crowd_draws = [next(draws) for _ in range(4)]
        return Scene(_crowd(generator, crowd_draws, later[0] / styled if later[0] < styled else None), background)

    kinds = [(_pick(list(THINGS), next(draws)), _pick(list(COLOURS), next(draws))) for _ in range(2)][:count]
    overlaps = count == 2 and later[2] < overlapping
    if count == 2 and (kinds[0] == kinds[1] or (overlaps and kinds[0][1] == kinds[1][1])):
        shape, colour = kinds[1]  # two of a kind need counting words, two of a colour are one when they overlap
        others = [name for name in COLOURS if name != colour]
        kinds[1] = (shape, _pick(others, next(draws)))
    if overlaps:
        return Scene(_overlap(generator, kinds, [next(draws) for _ in range(4)]), background, overlapping=True)
    sizes = [_pick(list(SIZES), next(draws))]
    if count == 2:
        sizes.append(_pick(BESIDE[sizes[0]], next(draws)))
    radii = [low + (high - low) * next(draws) for low, high in (SIZES[size] for size in sizes)]

    styles = [
        _pick(styles_for(shape, size), w / styled) if w < styled else "flat"
        for (shape, _), size, w in zip(kinds, sizes, later, strict=False)
    ]
    for k in reversed(range(count)):  # without room for both styles the second is flat, or else both are
        reaches = [_reach(shape, r, style) for (shape, _), r, style in zip(kinds, radii, styles, strict=True)]
        if count == 2 and min(_spare(reaches[0], reaches[1], axis) for axis in (0, 1)) < 0:
            styles[k] = "flat"
    reaches = [_reach(shape, r, style) for (shape, _), r, style in zip(kinds, radii, styles, strict=True)]
    if count == 1:
        places = [_anywhere(reaches[0], next(draws), next(draws))]
    else:
        places = _beside(reaches[0], reaches[1], [next(draws) for _ in range(5)])
    rows = zip(kinds, sizes, places, radii, styles, strict=True)
    things = (Thing(shape, colour, size, x, y, r, style) for (shape, colour), size, (x, y), r, style in rows)
    return Scene(tuple(things), background)


def _crowd(generator: torch.Generator, draws: list[float], styled: float | None) -> tuple[Thing, ...]:
    """Things of one kind, size and style, their boxes GAP apart: the number first, then a size with room for it."""
    shape, colour = _pick(list(THINGS), draws[0]), _pick(list(COLOURS), draws[1])
    count = _pick([2, 3, 4, 5], draws[2])
    size = _pick([size for size, numbers in CROWDS.items() if count in numbers], draws[3])
    style = "flat" if styled is None else _pick(styles_for(shape, size), styled)
    low, high = SIZES[size]
    reach, tries = torch.tensor(extent(shape)).view(2, 2), 0  # before and after, along x and y
    while True:
        halo = torch.tensor(HALO[style]).view(2, 2)
        u = torch.rand(256, count, 3, generator=generator)  # tries at once
        radius = low + (high - low) * u[..., :1]
        start, stop = BORDER + reach[:, 0] * radius + halo[:, 0], 1 - BORDER - reach[:, 1] * radius - halo[:, 1]
        centre = start + (stop - start) * u[..., 1:]
        before, after = centre - reach[:, 0] * radius - halo[:, 0], centre + reach[:, 1] * radius + halo[:, 1]
        apart = (before[:, :, None] - after[:, None] >= GAP).any(-1)  # i begins after j, along x or y
        fits = (apart | apart.mT | torch.eye(count, dtype=torch.bool)).all((1, 2)) & (stop > start).all((1, 2))
        if fits.any():
            chosen = int(fits.int().argmax())
            rows = torch.cat([centre, radius], -1)[chosen].tolist()
            return tuple(Thing(shape, colour, size, x, y, r, style) for x, y, r in rows)
        tries += 1
        if tries == PATIENCE:
            style = "flat"


def _overlap(generator: torch.Generator, kinds: list[tuple[str, str]], draws: list[float]) -> tuple[Thing, ...]:
    """Two things, the second of which hides part of the first; a small ring is too thin for that."""
    sizes = [_pick(list(BEFORE), draws[0])]
    sizes.append(_pick([size for size in BEFORE[sizes[0]] if (kinds[1][0], size) != ("ring", "small")], draws[1]))
    radii = [low + (high - low) * u for (low, high), u in zip((SIZES[size] for size in sizes), draws[2:], strict=True)]
    places = overlapping_places(kinds[0][0], radii[0], kinds[1][0], radii[1], BORDER, generator)
    rows = zip(kinds, sizes, places, radii, strict=True)
    return tuple(Thing(shape, colour, size, x, y, r) for (shape, colour), size, (x, y), r in rows)


def _reach(shape: str, radius: float, style: str) -> Extent:
    """How far a thing extends from its centroid, border and shadow included."""
    return Extent(*(part * radius + more for part, more in zip(extent(shape), HALO[style], strict=True)))


def _room(reach: Extent, axis: int) -> tuple[float, float]:
    """Where the centroid may be, along x (axis 0) or y (1), with the thing inside the canvas."""
    before, after = reach[2 * axis : 2 * axis + 2]
    return BORDER + before, 1 - BORDER - after


def _least(first: Extent, second: Extent, axis: int) -> float:
    """How far apart the centroids of two things must be, the second to the right of (or below) the first."""
    return max(first[2 * axis + 1] + second[2 * axis] + GAP, MARGIN)


def _spare(first: Extent, second: Extent, axis: int) -> float:
    """The room along an axis that two things beside each other leave, in the less roomy order."""
    return min(
        _room(b, axis)[1] - _room(a, axis)[0] - _least(a, b, axis) for a, b in ((first, second), (second, first))
    )


def _anywhere(reach: Extent, u: float, v: float) -> tuple[float, float]:
    (left, right), (top, bottom) = _room(reach, 0), _room(reach, 1)
    return left + (right - left) * u, top + (bottom - top) * v


def _beside(first: Extent, second: Extent, draws: list[float]) -> list[tuple[float, float]]:
    """Two centroids in a relation that nobody would dispute (MARGIN, SLANT), without touching (GAP).

    Built, not rejected: every relation is equally likely whatever the sizes.
    """
    u, *draws = draws
    axis, swap = divmod(int(u * 4), 2)
    if swap:
        first, second = second, first
    start, _ = _room(first, axis)
    _, stop = _room(second, axis)
    least = _least(first, second, axis)
    near, far = sorted(draws[:2])
    a = start + (stop - start - least) * near
    apart = least + (stop - start - least) * (far - near)

    low, high = _room(first, 1 - axis)
    across = low + (high - low) * draws[2]
    low, high = _room(second, 1 - axis)
    low, high = max(low, across - SLANT * apart), min(high, across + SLANT * apart)
    across2 = low + (high - low) * draws[3]

    places = [(a, across), (a + apart, across2)] if axis == 0 else [(across, a), (across2, a + apart)]
    return places[::-1] if swap else places


def _pick(choices: Sequence[Choice], u: float) -> Choice:
    return choices[min(int(u * len(choices)), len(choices) - 1)]
