"""The styles of an object: flat (not mentioned in captions), outline and sticker.

An outline is a line along the contour with the background inside. A sticker has a white border and a soft shadow to
the lower right, so that it is visible on every background: by its shadow on white, by its border on black. Widths are
fractions of the canvas and do not depend on the object's size: 3 pixels of 64, the least that an autoencoder preserves.
"""

from torch import Tensor

STYLES = ("flat", "outline", "sticker")
LINE_WIDTH = 3 / 64  # of an outline
BORDER_WIDTH = 3 / 64  # of a sticker
SHADOW_OFFSET = 2.5 / 64  # to the right and down
SHADOW_SOFTNESS = 2 / 64  # width of the shadow's edge
SHADOW_OPACITY = 0.5

_SHADOW_REACH = BORDER_WIDTH + SHADOW_OFFSET + SHADOW_SOFTNESS / 2
STYLE_EXTENT: dict[str, tuple[float, float, float, float]] = {  # what a style adds on the left, right, top and bottom
    "flat": (0, 0, 0, 0),
    "outline": (LINE_WIDTH / 2, LINE_WIDTH / 2, LINE_WIDTH / 2, LINE_WIDTH / 2),
    "sticker": (BORDER_WIDTH, _SHADOW_REACH, BORDER_WIDTH, _SHADOW_REACH),
}


def styles_for(shape: str, size: str) -> list[str]:
    """The styles besides flat in which an object remains recognisable.

    An outlined circle looks like a ring and an outlined ring like two circles; a small outline has no visible hole.
    """
    return ["sticker"] if shape in ("circle", "ring") or size == "small" else ["outline", "sticker"]


def paint_coverage(distance: Tensor, style: str, size: int) -> Tensor:
    """The part of each pixel in the object's colour, from the signed distance to its contour in pixels."""
    if style == "outline":
        distance = distance.abs() - LINE_WIDTH / 2 * size
    return (0.5 - distance).clamp(0, 1)


def border_coverage(distance: Tensor, size: int) -> Tensor:
    """The part of each pixel within a sticker's border; includes the object itself."""
    return (0.5 - (distance - BORDER_WIDTH * size)).clamp(0, 1)


def shadow_opacity(distance: Tensor, size: int) -> Tensor:
    """The opacity of a sticker's shadow; `distance` is to the contour moved by SHADOW_OFFSET."""
    return SHADOW_OPACITY * (0.5 - (distance - BORDER_WIDTH * size) / (SHADOW_SOFTNESS * size)).clamp(0, 1)
