"""What a picture of Sticker World shows: one thing, two, or several of a kind on a plain background.

Lengths are fractions of the canvas, x to the right and y downwards; (x, y) is a thing's centroid.
"""

from dataclasses import dataclass

from minisd.sticker.world.shapes import Extent, extent
from minisd.sticker.world.styles import HALO

# Ranges of the radius (of the disc with the same area), with gaps. Medium is what goes without saying.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.08, 0.095),
    "medium": (0.12, 0.14),
    "large": (0.175, 0.205),
}
RELATIONS = ("left of", "right of", "above", "below")
LAYERS = ("in front of", "behind")  # how one of two things that overlap stands to the other
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
INVERSE |= {"in front of": "behind", "behind": "in front of"}


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
        return reach_of(self.shape, self.radius, self.style)


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


def reach_of(shape: str, radius: float, style: str) -> Extent:
    """How far a thing extends from its centroid, border and shadow included."""
    return Extent(*(part * radius + more for part, more in zip(extent(shape), HALO[style], strict=True)))
