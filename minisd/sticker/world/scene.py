"""Scenes of Sticker World: one object, two, or several of one kind on a plain background.

Lengths are fractions of the canvas, x to the right and y downwards; (x, y) is the centroid of an object.
"""

from dataclasses import dataclass

from minisd.sticker.world.shapes import Extent, extent
from minisd.sticker.world.styles import STYLE_EXTENT

# Ranges of the radius (of the disc with the same area), with gaps between them. Captions do not mention "medium".
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.08, 0.095),
    "medium": (0.12, 0.14),
    "large": (0.175, 0.205),
}
RELATIONS = ("left of", "right of", "above", "below")
DEPTH_RELATIONS = ("in front of", "behind")  # between two objects that overlap
INVERSE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
INVERSE_RELATION |= {"in front of": "behind", "behind": "in front of", "beside": "beside"}


@dataclass(frozen=True)
class Object:
    """One object; `size` names the range that `radius` was drawn from."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    style: str = "flat"

    @property
    def extent(self) -> Extent:
        """Distances from the centroid to the four sides, with border and shadow."""
        return styled_extent(self.shape, self.radius, self.style)


@dataclass(frozen=True)
class Scene:
    """Objects on a background; later ones are in front of earlier ones.

    overlapping: whether the second of two objects hides part of the first; otherwise the objects are apart.
    """

    objects: tuple[Object, ...]
    background: str = "white"
    overlapping: bool = False

    @property
    def alike(self) -> bool:
        """Whether the scene shows several objects of one shape and colour, which captions count."""
        return len(self.objects) > 1 and len({(obj.shape, obj.colour) for obj in self.objects}) == 1

    @property
    def relation(self) -> str | None:
        """The relation of the first object to the second; None unless there are two objects of different kinds."""
        if len(self.objects) != 2 or self.alike:
            return None
        if self.overlapping:
            return "behind"
        first, second = self.objects
        return relation_between(first.x, first.y, second.x, second.y)


def relation_between(x1: float, y1: float, x2: float, y2: float) -> str:
    """The relation of an object at (x1, y1) to one at (x2, y2), along the axis on which they are further apart."""
    if abs(x1 - x2) >= abs(y1 - y2):
        return "left of" if x1 < x2 else "right of"
    return "above" if y1 < y2 else "below"


def grid_position(x: float, y: float, clearance: float = 0.0) -> tuple[str, str] | None:
    """The cell of the 3x3 grid, such as ("top", "left"); None closer than `clearance` to a border between cells."""
    if min(abs(v - border) for v in (x, y) for border in (1 / 3, 2 / 3)) < clearance:
        return None
    return ("top", "middle", "bottom")[min(int(y * 3), 2)], ("left", "middle", "right")[min(int(x * 3), 2)]


def styled_extent(shape: str, radius: float, style: str) -> Extent:
    """Distances from an object's centroid to its four sides, with border and shadow."""
    return Extent(*(part * radius + more for part, more in zip(extent(shape), STYLE_EXTENT[style], strict=True)))
