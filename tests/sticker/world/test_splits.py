"""Held-out combinations: few, spread evenly, in both directions, and never in the training scenes."""

from collections import Counter
from itertools import product

from minisd.sticker.training.dataset import training_scenes
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE_RELATION, RELATIONS, Object, Scene
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.splits import HELD_OUT_COUNTS, HELD_OUT_PAIRS, HELD_OUT_TRIPLES, held_out

PLACES = {"left of": (0.2, 0.5, 0.8, 0.5), "right of": (0.8, 0.5, 0.2, 0.5)}
PLACES |= {"above": (0.5, 0.2, 0.5, 0.8), "below": (0.5, 0.8, 0.5, 0.2)}


def pair(first: str, relation: str, second: str) -> Scene:
    x1, y1, x2, y2 = PLACES[relation]
    scene = Scene((Object(first, "red", "small", x1, y1, 0.09), Object(second, "blue", "small", x2, y2, 0.09)))
    assert scene.relation == relation
    return scene


def test_every_shape_lacks_one_colour_and_no_colour_lacks_many_shapes() -> None:
    assert Counter(shape for shape, _ in HELD_OUT_PAIRS) == dict.fromkeys(SHAPES, 1)
    assert {colour for _, colour in HELD_OUT_PAIRS} <= set(COLOURS)
    assert max(Counter(colour for _, colour in HELD_OUT_PAIRS).values()) == 2


def test_exactly_these_are_held_out() -> None:
    for shape, colour in product(SHAPES, COLOURS):
        scene = Scene((Object(shape, colour, "small", 0.5, 0.5, 0.09),))
        assert held_out(scene) == ((shape, colour) in HELD_OUT_PAIRS)
    for count, shape in product((2, 3, 4, 5), SHAPES):
        scene = Scene(tuple(Object(shape, "red", "small", 0.1 + 0.2 * k, 0.5, 0.09) for k in range(count)))
        assert held_out(scene) == ((count, shape) in HELD_OUT_COUNTS)
    found = {(a, r, b) for a, r, b in product(SHAPES, RELATIONS, SHAPES) if held_out(pair(a, r, b))}
    assert found == HELD_OUT_TRIPLES | {(b, INVERSE_RELATION[r], a) for a, r, b in HELD_OUT_TRIPLES}


def test_they_are_in_the_world_and_not_in_the_training_scenes() -> None:
    share = sum(held_out(scene_from_seed(seed)) for seed in range(2000)) / 2000
    assert 0.1 < share < 0.25
    assert not any(held_out(scene) for scene in training_scenes(500, seed=0))
