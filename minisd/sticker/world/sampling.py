"""Scenes by chance: one thing, two, or several of a kind, sizes before places, places built so that they fit.

Two may overlap, and a thing may be in another style than flat, where that is asked for.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from minisd.sticker.world.overlap import overlapping_places
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS
from minisd.sticker.world.scene import SIZES, Scene, Thing, reach_of
from minisd.sticker.world.shapes import THINGS, Extent, extent
from minisd.sticker.world.styles import HALO, styles_for

Choice = TypeVar("Choice")
# How many of a kind there is room for.
CROWDS: dict[str, tuple[int, ...]] = {"small": (2, 3, 4, 5), "medium": (2, 3)}
BORDER = 0.03  # between things and the edge of the canvas
GAP = 0.06  # between two things
MARGIN = 0.25  # centroids of two things are this far apart in the direction of their relation ...
SLANT = 0.7  # ... and at most this fraction of it in the other direction
BESIDE = {"small": ["small", "medium", "large"], "medium": ["small", "medium"], "large": ["small"]}  # sizes with room
IN_FRONT = {"medium": ["small", "medium", "large"], "large": ["medium", "large"]}  # hiding neither nothing nor all
PATIENCE = 4  # batches of tries for several of a kind in a style, before they are flat


def scene_from_seed(seed: int, **chances: float) -> Scene:
    """The scene of a seed; see sample_scene for the chances that it takes."""
    return sample_scene(torch.Generator().manual_seed(seed), **chances)


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
    first_style, second_style, layered = 1.0, 1.0, 1.0  # never below a probability
    if styled or overlapping:
        first_style, second_style, layered, _ = torch.rand(4, generator=generator).tolist()
    others = [name for name in BACKGROUNDS if name != "white"]
    u = next(draws)
    background = "white" if u < white else _pick(others, (u - white) / (1 - white))
    v = next(draws)
    if two <= v < two + several:
        return Scene(_crowd(generator, draws, first_style, styled), background)
    kinds = [(_pick(list(THINGS), next(draws)), _pick(list(COLOURS), next(draws))) for _ in range(2)]
    if v >= two:
        return Scene(_apart(kinds[:1], draws, [first_style], styled), background)
    overlaps = layered < overlapping
    (_, colour), (shape, colour2) = kinds
    if kinds[0] == kinds[1] or (overlaps and colour == colour2):
        # two of a kind need counting words, two of a colour are one when they overlap
        kinds[1] = (shape, _pick([name for name in COLOURS if name != colour], next(draws)))
    if overlaps:
        return Scene(_overlap(generator, kinds, draws), background, overlapping=True)
    return Scene(_apart(kinds, draws, [first_style, second_style], styled), background)


def _apart(
    kinds: list[tuple[str, str]], draws: Iterator[float], style_draws: list[float], styled: float
) -> tuple[Thing, ...]:
    """One thing, or two beside each other, of these shapes and colours."""
    sizes = [_pick(list(SIZES), next(draws))]
    if len(kinds) == 2:
        sizes.append(_pick(BESIDE[sizes[0]], next(draws)))
    radii = [low + (high - low) * next(draws) for low, high in (SIZES[size] for size in sizes)]
    shapes = [shape for shape, _ in kinds]
    styles = [_style(*each, styled) for each in zip(shapes, sizes, style_draws, strict=True)]
    if len(kinds) == 1:
        places = [_anywhere(reach_of(shapes[0], radii[0], styles[0]), next(draws), next(draws))]
    else:
        first, second = (partial(reach_of, *each) for each in zip(shapes, radii, strict=True))
        for k in (1, 0):  # without room for both styles the second is flat, or else both are
            if min(_spare(first(styles[0]), second(styles[1]), axis) for axis in (0, 1)) < 0:
                styles[k] = "flat"
        places = _beside(first(styles[0]), second(styles[1]), [next(draws) for _ in range(5)])
    rows = zip(kinds, sizes, places, radii, styles, strict=True)
    return tuple(Thing(shape, colour, size, x, y, r, style) for (shape, colour), size, (x, y), r, style in rows)


def _crowd(generator: torch.Generator, draws: Iterator[float], style_draw: float, styled: float) -> tuple[Thing, ...]:
    """Things of one kind, size and style, their boxes GAP apart: the number first, then a size with room for it."""
    shape, colour = _pick(list(THINGS), next(draws)), _pick(list(COLOURS), next(draws))
    count = _pick([2, 3, 4, 5], next(draws))
    size = _pick([size for size, numbers in CROWDS.items() if count in numbers], next(draws))
    style = _style(shape, size, style_draw, styled)
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


def _overlap(generator: torch.Generator, kinds: list[tuple[str, str]], draws: Iterator[float]) -> tuple[Thing, ...]:
    """Two things, the second of which hides part of the first; a small ring is too thin for that."""
    sizes = [_pick(list(IN_FRONT), next(draws))]
    sizes.append(_pick([size for size in IN_FRONT[sizes[0]] if (kinds[1][0], size) != ("ring", "small")], next(draws)))
    radii = [low + (high - low) * next(draws) for low, high in (SIZES[size] for size in sizes)]
    places = overlapping_places(kinds[0][0], radii[0], kinds[1][0], radii[1], BORDER, generator)
    rows = zip(kinds, sizes, places, radii, strict=True)
    return tuple(Thing(shape, colour, size, x, y, r) for (shape, colour), size, (x, y), r in rows)


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


def _style(shape: str, size: str, u: float, styled: float) -> str:
    """Another one than flat if u < styled."""
    return _pick(styles_for(shape, size), u / styled) if u < styled else "flat"


def _pick(choices: Sequence[Choice], u: float) -> Choice:
    return choices[min(int(u * len(choices)), len(choices) - 1)]
