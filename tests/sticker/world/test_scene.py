"""Properties of scenes: positions, relations, and the extent of objects."""

import pytest

from minisd.sticker.world.scene import INVERSE_RELATION, Object, Scene, grid_position, relation_between


def test_positions():
    assert grid_position(0.1, 0.1) == ("top", "left")
    assert grid_position(0.5, 0.9) == ("bottom", "middle")
    assert grid_position(0.34, 0.9, clearance=0.03) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((0.2, 0.5), (0.7, 0.6), "left of"), ((0.5, 0.2), (0.4, 0.8), "above"), ((0.9, 0.1), (0.2, 0.3), "right of")],
)
def test_relations(first: tuple[float, float], second: tuple[float, float], expected: str) -> None:
    assert relation_between(*first, *second) == expected
    assert relation_between(*second, *first) == INVERSE_RELATION[expected]
    objects = tuple(Object(shape, "red", "small", *at, 0.09) for shape, at in (("star", first), ("ring", second)))
    assert Scene(objects).relation == expected
    assert Scene(objects, overlapping=True).relation == "behind"  # later objects are in front
    assert Scene(objects[:1]).relation is None


def test_a_style_adds_to_the_extent_and_a_shadow_to_the_right_and_below() -> None:
    flat, outline, sticker = (
        Object("square", "red", "large", 0.5, 0.5, 0.18, style).extent for style in ("flat", "outline", "sticker")
    )
    assert len(set(flat)) == 1
    assert all(more > less for more, less in zip(outline, flat, strict=True))
    left, right, above, below = sticker
    assert left == above > outline[0]
    assert right == below > left
