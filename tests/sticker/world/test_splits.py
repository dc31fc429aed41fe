"""What is held out: little, spread evenly, never taught, whichever way round it is said."""

from collections import Counter
from itertools import product

from minisd.sticker.training.dataset import lessons
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE, RELATIONS, Scene, Thing
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.splits import COUNTS, PAIRS, TRIPLES, held_out

PLACES = {"left of": (0.2, 0.5, 0.8, 0.5), "right of": (0.8, 0.5, 0.2, 0.5)}
PLACES |= {"above": (0.5, 0.2, 0.5, 0.8), "below": (0.5, 0.8, 0.5, 0.2)}


def pair(first: str, relation: str, second: str) -> Scene:
    x1, y1, x2, y2 = PLACES[relation]
    scene = Scene((Thing(first, "red", "small", x1, y1, 0.09), Thing(second, "blue", "small", x2, y2, 0.09)))
    assert scene.relation == relation
    return scene


def test_every_shape_misses_one_colour_and_no_colour_misses_many() -> None:
    assert Counter(shape for shape, _ in PAIRS) == dict.fromkeys(THINGS, 1)
    assert {colour for _, colour in PAIRS} <= set(COLOURS)
    assert max(Counter(colour for _, colour in PAIRS).values()) == 2


def test_exactly_these_are_held_out() -> None:
    for shape, colour in product(THINGS, COLOURS):
        scene = Scene((Thing(shape, colour, "small", 0.5, 0.5, 0.09),))
        assert held_out(scene) == ((shape, colour) in PAIRS)
    for count, shape in product((2, 3, 4, 5), THINGS):
        scene = Scene(tuple(Thing(shape, "red", "small", 0.1 + 0.2 * k, 0.5, 0.09) for k in range(count)))
        assert held_out(scene) == ((count, shape) in COUNTS)
    found = {(a, r, b) for a, r, b in product(THINGS, RELATIONS, THINGS) if held_out(pair(a, r, b))}
    assert found == TRIPLES | {(b, INVERSE[r], a) for a, r, b in TRIPLES}


def test_they_are_in_the_world_and_not_in_the_lessons() -> None:
    share = sum(held_out(scene_from_seed(seed)) for seed in range(2000)) / 2000
    assert 0.1 < share < 0.25
    assert not any(held_out(scene) for scene in lessons(500, seed=0))
