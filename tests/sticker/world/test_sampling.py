"""Scenes: a pure function of the seed, unambiguous, inside the canvas, in the right proportions."""

from collections import Counter
from itertools import combinations

import pytest
import torch

from minisd.sticker.world.sampling import CROWDS, GAP, MARGIN, sample_scene, scene_from_seed
from minisd.sticker.world.scene import RELATIONS, SIZES
from minisd.sticker.world.shapes import THINGS, extent

SCENES = [scene_from_seed(seed) for seed in range(4000)]
PAIRS = [scene for scene in SCENES if scene.relation is not None]
CROWDED = [scene_from_seed(seed, two=0, several=1) for seed in range(300)]


def test_a_seed_is_a_scene_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    assert [scene_from_seed(seed) for seed in range(50)] == SCENES[:50]
    assert sample_scene(torch.Generator().manual_seed(7)) == SCENES[7]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(SCENES)) == len(SCENES)


def test_things_lie_inside_and_have_the_radius_of_their_size():
    for scene in SCENES + CROWDED:
        for thing in scene.things:
            left, right, up, down = (reach * thing.radius for reach in extent(thing.shape))
            assert min(thing.x - left, 1 - thing.x - right, thing.y - up, 1 - thing.y - down) >= 0.02
            assert SIZES[thing.size][0] <= thing.radius <= SIZES[thing.size][1]


def test_two_things_are_apart_and_nobody_disputes_their_relation():
    for scene in PAIRS:
        a, b = scene.things
        dx, dy = abs(a.x - b.x), abs(a.y - b.y)
        assert max(dx, dy) >= MARGIN - 1e-9
        assert min(dx, dy) <= 0.7 * max(dx, dy) + 1e-9
        first, second = {"left of": (a, b), "right of": (b, a), "above": (a, b), "below": (b, a)}[scene.relation]
        if dx > dy:
            gap = second.x - first.x - extent(first.shape).right * first.radius
            gap -= extent(second.shape).left * second.radius
        else:
            gap = second.y - first.y - extent(first.shape).down * first.radius
            gap -= extent(second.shape).up * second.radius
        assert gap >= GAP - 1e-9
        assert (a.shape, a.colour) != (b.shape, b.colour)


def test_several_of_a_kind_are_apart_and_of_every_number_and_kind():
    for scene in CROWDED:
        assert scene.alike
        assert scene.relation is None
        for a, b in combinations(scene.things, 2):
            assert (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)
            first, second = extent(a.shape), extent(b.shape)
            right, left = b.x - a.x - first.right * a.radius, a.x - b.x - first.left * a.radius
            below, above = b.y - a.y - first.down * a.radius, a.y - b.y - first.up * a.radius
            gaps = [right - second.left * b.radius, left - second.right * b.radius]
            gaps += [below - second.up * b.radius, above - second.down * b.radius]
            assert max(gaps) >= GAP - 1e-6
    kinds = Counter((scene.things[0].size, len(scene.things)) for scene in CROWDED)
    assert set(kinds) == {(size, count) for size, counts in CROWDS.items() for count in counts}
    numbers = Counter(len(scene.things) for scene in CROWDED)
    assert all(numbers[n] / len(CROWDED) == pytest.approx(1 / 4, abs=0.08) for n in (2, 3, 4, 5))
    assert {scene.things[0].shape for scene in CROWDED} == set(THINGS)


def test_proportions():
    assert len(PAIRS) / len(SCENES) == pytest.approx(0.4, abs=0.03)
    assert sum(scene.alike for scene in SCENES) / len(SCENES) == pytest.approx(0.1, abs=0.02)
    assert sum(scene.background == "white" for scene in SCENES) / len(SCENES) == pytest.approx(0.55, abs=0.03)
    relations = Counter(scene.relation for scene in PAIRS)
    assert all(relations[name] / len(PAIRS) == pytest.approx(0.25, abs=0.04) for name in RELATIONS)
    shapes = Counter(thing.shape for scene in SCENES for thing in scene.things)
    assert all(shapes[name] / shapes.total() == pytest.approx(1 / len(THINGS), abs=0.02) for name in THINGS)
    assert all(len(scene_from_seed(seed, two=1.0).things) == 2 for seed in range(20))
