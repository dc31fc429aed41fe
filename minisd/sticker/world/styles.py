"""The styles of a thing: flat, which goes without saying, outline and sticker.

An outline is a line along the contour, the background inside. A sticker has a white border around it and a soft shadow
below right, so that it is seen on every background: on white by its shadow, on black by its border. Widths are
fractions of the canvas, whatever the thing's size: 3 pixels of 64, which is the least that an autoencoder keeps.
"""

from torch import Tensor

STYLES = ("flat", "outline", "sticker")
LINE = 3 / 64
EDGE = 3 / 64  # of a sticker: its white border
DROP = 2.5 / 64  # how far its shadow falls, to the right and down
SOFT = 2 / 64  # the width of the shadow's edge
SHADE = 0.5  # how much light the shadow takes

HALO: dict[str, tuple[float, float, float, float]] = {  # what a style adds on the left, right, above and below
    "flat": (0, 0, 0, 0),
    "outline": (LINE / 2, LINE / 2, LINE / 2, LINE / 2),
    "sticker": (EDGE, EDGE + DROP + SOFT / 2, EDGE, EDGE + DROP + SOFT / 2),
}


def styles_for(shape: str, size: str) -> list[str]:
    """The styles besides flat in which a thing stays what it is.

    Without circle and ring as outlines: one would pass for a ring, the other is two circles. Without small ones, in
    which no hole would be left.
    """
    return ["sticker"] if shape in ("circle", "ring") or size == "small" else ["outline", "sticker"]


def painted(distance: Tensor, style: str, size: int) -> Tensor:
    """How much of each pixel has the thing's colour, from the signed distance to its contour in pixels."""
    if style == "outline":
        distance = distance.abs() - LINE / 2 * size
    return (0.5 - distance).clamp(0, 1)


def bordered(distance: Tensor, size: int) -> Tensor:
    """How much of each pixel lies within a sticker's border, the thing itself included."""
    return (0.5 - (distance - EDGE * size)).clamp(0, 1)


def shaded(distance: Tensor, size: int) -> Tensor:
    """How much light a sticker's shadow takes; `distance` to the thing moved by DROP."""
    return SHADE * (0.5 - (distance - EDGE * size) / (SOFT * size)).clamp(0, 1)
