"""What a scene says of itself: places, relations, and how far things reach."""

import pytest

from minisd.sticker.world.scene import INVERSE, Scene, Thing, position, relation


def test_positions():
    assert position(0.1, 0.1) == ("top", "left")
    assert position(0.5, 0.9) == ("bottom", "middle")
    assert position(0.34, 0.9, clearance=0.03) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((0.2, 0.5), (0.7, 0.6), "left of"), ((0.5, 0.2), (0.4, 0.8), "above"), ((0.9, 0.1), (0.2, 0.3), "right of")],
)
def test_relations(first: tuple[float, float], second: tuple[float, float], expected: str) -> None:
    assert relation(*first, *second) == expected
    assert relation(*second, *first) == INVERSE[expected]
    things = tuple(Thing(shape, "red", "small", *at, 0.09) for shape, at in (("star", first), ("ring", second)))
    assert Scene(things).relation == expected
    assert Scene(things, overlapping=True).relation == "behind"  # later things are in front
    assert Scene(things[:1]).relation is None


def test_a_style_reaches_further_and_a_shadow_falls_to_the_right_and_down() -> None:
    flat, outline, sticker = (
        Thing("square", "red", "large", 0.5, 0.5, 0.18, style).reach for style in ("flat", "outline", "sticker")
    )
    assert len(set(flat)) == 1
    assert all(more > less for more, less in zip(outline, flat, strict=True))
    left, right, above, below = sticker
    assert left == above > outline[0]
    assert right == below > left
