"""Random scenes: one object, two, or several of one kind.

Sizes are drawn before positions, and positions are constructed so that the objects fit: rejecting scenes that do not
fit would make large objects rare. Objects may have a style other than flat, and two may overlap, as requested.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from minisd.sticker.world.overlap import overlapping_positions
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS
from minisd.sticker.world.scene import SIZES, Object, Scene, styled_extent
from minisd.sticker.world.shapes import SHAPES, Extent, extent
from minisd.sticker.world.styles import STYLE_EXTENT, styles_for

Option = TypeVar("Option")
COUNTS_BY_SIZE: dict[str, tuple[int, ...]] = {"small": (2, 3, 4, 5), "medium": (2, 3)}  # of objects of one kind
CANVAS_MARGIN = 0.03  # between objects and the edge of the canvas
MIN_GAP = 0.06  # between two objects
MIN_SEPARATION = 0.25  # of the centroids of two objects, along the axis of their relation
MAX_SLANT = 0.7  # of that distance is the largest distance along the other axis
SIZES_BESIDE = {"small": ["small", "medium", "large"], "medium": ["small", "medium"], "large": ["small"]}
SIZES_IN_FRONT = {"medium": ["small", "medium", "large"], "large": ["medium", "large"]}  # hide enough, but not all
STYLED_ATTEMPTS = 4  # batches of attempts to place several objects in a style, before they become flat


def scene_from_seed(seed: int, **probabilities: float) -> Scene:
    """The scene of a seed; see sample_scene for the probabilities."""
    return sample_scene(torch.Generator().manual_seed(seed), **probabilities)


def sample_scene(
    generator: torch.Generator,
    two: float = 0.4,
    several: float = 0.1,
    white: float = 0.55,
    styled: float = 0.0,
    overlapping: float = 0.0,
) -> Scene:
    """Draw a scene: two objects with probability `two`, two to five of one kind with probability `several`, or one.

    The background is white with probability `white`. An object, or several of one kind, has a style other than flat
    with probability `styled`, where there is room for it. Two objects overlap with probability `overlapping`, and are
    flat then. If both are 0, no random numbers are drawn for them, so that a seed gives the same scene as in earlier
    versions of the world, which had neither.

    Relations and positions are never ambiguous: see CANVAS_MARGIN, MIN_GAP, MIN_SEPARATION and MAX_SLANT.
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
        return Scene(_several_of_a_kind(generator, draws, first_style, styled), background)
    kinds = [(_pick(list(SHAPES), next(draws)), _pick(list(COLOURS), next(draws))) for _ in range(2)]
    if v >= two:
        return Scene(_apart(kinds[:1], draws, [first_style], styled), background)
    overlaps = layered < overlapping
    (_, colour), (shape, colour2) = kinds
    if kinds[0] == kinds[1] or (overlaps and colour == colour2):
        # two of a kind would have to be counted, and overlapping objects of one colour cannot be separated
        kinds[1] = (shape, _pick([name for name in COLOURS if name != colour], next(draws)))
    if overlaps:
        return Scene(_overlapping(generator, kinds, draws), background, overlapping=True)
    return Scene(_apart(kinds, draws, [first_style, second_style], styled), background)


def _apart(
    kinds: list[tuple[str, str]], draws: Iterator[float], style_draws: list[float], styled: float
) -> tuple[Object, ...]:
    """One object, or two beside each other, of these shapes and colours."""
    sizes = [_pick(list(SIZES), next(draws))]
    if len(kinds) == 2:
        sizes.append(_pick(SIZES_BESIDE[sizes[0]], next(draws)))
    radii = [low + (high - low) * next(draws) for low, high in (SIZES[size] for size in sizes)]
    shapes = [shape for shape, _ in kinds]
    styles = [_pick_style(*each, styled) for each in zip(shapes, sizes, style_draws, strict=True)]
    if len(kinds) == 1:
        places = [_anywhere(styled_extent(shapes[0], radii[0], styles[0]), next(draws), next(draws))]
    else:
        first, second = (partial(styled_extent, *each) for each in zip(shapes, radii, strict=True))
        for k in (1, 0):  # without room for both styles the second object becomes flat, then the first
            if min(_spare_room(first(styles[0]), second(styles[1]), axis) for axis in (0, 1)) < 0:
                styles[k] = "flat"
        places = _beside(first(styles[0]), second(styles[1]), [next(draws) for _ in range(5)])
    rows = zip(kinds, sizes, places, radii, styles, strict=True)
    return tuple(Object(shape, colour, size, x, y, r, style) for (shape, colour), size, (x, y), r, style in rows)


def _several_of_a_kind(
    generator: torch.Generator, draws: Iterator[float], style_draw: float, styled: float
) -> tuple[Object, ...]:
    """Objects of one shape, colour, size and style, their boxes MIN_GAP apart; the count is drawn before the size."""
    shape, colour = _pick(list(SHAPES), next(draws)), _pick(list(COLOURS), next(draws))
    count = _pick([2, 3, 4, 5], next(draws))
    size = _pick([size for size, counts in COUNTS_BY_SIZE.items() if count in counts], next(draws))
    style = _pick_style(shape, size, style_draw, styled)
    low, high = SIZES[size]
    reach, attempts = torch.tensor(extent(shape)).view(2, 2), 0  # before and after the centroid, along x and y
    while True:
        halo = torch.tensor(STYLE_EXTENT[style]).view(2, 2)
        u = torch.rand(256, count, 3, generator=generator)  # attempts at once
        radius = low + (high - low) * u[..., :1]
        start = CANVAS_MARGIN + reach[:, 0] * radius + halo[:, 0]
        stop = 1 - CANVAS_MARGIN - reach[:, 1] * radius - halo[:, 1]
        centre = start + (stop - start) * u[..., 1:]
        before, after = centre - reach[:, 0] * radius - halo[:, 0], centre + reach[:, 1] * radius + halo[:, 1]
        apart = (before[:, :, None] - after[:, None] >= MIN_GAP).any(-1)  # i begins after j ends, along x or y
        fits = (apart | apart.mT | torch.eye(count, dtype=torch.bool)).all((1, 2)) & (stop > start).all((1, 2))
        if fits.any():
            chosen = int(fits.int().argmax())
            rows = torch.cat([centre, radius], -1)[chosen].tolist()
            return tuple(Object(shape, colour, size, x, y, r, style) for x, y, r in rows)
        attempts += 1
        if attempts == STYLED_ATTEMPTS:
            style = "flat"


def _overlapping(
    generator: torch.Generator, kinds: list[tuple[str, str]], draws: Iterator[float]
) -> tuple[Object, ...]:
    """Two objects, the second of which hides part of the first; a small ring is too thin to hide enough."""
    sizes = [_pick(list(SIZES_IN_FRONT), next(draws))]
    in_front = [size for size in SIZES_IN_FRONT[sizes[0]] if (kinds[1][0], size) != ("ring", "small")]
    sizes.append(_pick(in_front, next(draws)))
    radii = [low + (high - low) * next(draws) for low, high in (SIZES[size] for size in sizes)]
    places = overlapping_positions(kinds[0][0], radii[0], kinds[1][0], radii[1], CANVAS_MARGIN, generator)
    rows = zip(kinds, sizes, places, radii, strict=True)
    return tuple(Object(shape, colour, size, x, y, r) for (shape, colour), size, (x, y), r in rows)


def _centroid_range(reach: Extent, axis: int) -> tuple[float, float]:
    """The range of the centroid along x (axis 0) or y (1) that keeps the object inside the canvas."""
    before, after = reach[2 * axis : 2 * axis + 2]
    return CANVAS_MARGIN + before, 1 - CANVAS_MARGIN - after


def _min_distance(first: Extent, second: Extent, axis: int) -> float:
    """The least distance of two centroids, the second to the right of (or below) the first."""
    return max(first[2 * axis + 1] + second[2 * axis] + MIN_GAP, MIN_SEPARATION)


def _spare_room(first: Extent, second: Extent, axis: int) -> float:
    """The free space along an axis with two objects beside each other, in the order that leaves less."""
    return min(
        _centroid_range(b, axis)[1] - _centroid_range(a, axis)[0] - _min_distance(a, b, axis)
        for a, b in ((first, second), (second, first))
    )


def _anywhere(reach: Extent, u: float, v: float) -> tuple[float, float]:
    (left, right), (top, bottom) = _centroid_range(reach, 0), _centroid_range(reach, 1)
    return left + (right - left) * u, top + (bottom - top) * v


def _beside(first: Extent, second: Extent, draws: list[float]) -> list[tuple[float, float]]:
    """Two centroids in an unambiguous relation (MIN_SEPARATION, MAX_SLANT) and without contact (MIN_GAP).

    Every relation is equally likely for all sizes.
    """
    u, *draws = draws
    axis, swap = divmod(int(u * 4), 2)
    if swap:
        first, second = second, first
    start, _ = _centroid_range(first, axis)
    _, stop = _centroid_range(second, axis)
    least = _min_distance(first, second, axis)
    near, far = sorted(draws[:2])
    a = start + (stop - start - least) * near
    apart = least + (stop - start - least) * (far - near)

    low, high = _centroid_range(first, 1 - axis)
    across = low + (high - low) * draws[2]
    low, high = _centroid_range(second, 1 - axis)
    low, high = max(low, across - MAX_SLANT * apart), min(high, across + MAX_SLANT * apart)
    across2 = low + (high - low) * draws[3]

    places = [(a, across), (a + apart, across2)] if axis == 0 else [(across, a), (across2, a + apart)]
    return places[::-1] if swap else places


def _pick_style(shape: str, size: str, u: float, styled: float) -> str:
    """A style other than flat if u < styled."""
    return _pick(styles_for(shape, size), u / styled) if u < styled else "flat"


def _pick(options: Sequence[Option], u: float) -> Option:
    return options[min(int(u * len(options)), len(options) - 1)]
