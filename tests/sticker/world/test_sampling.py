"""Random scenes: determined by the seed, unambiguous, inside the canvas, in the right proportions."""

from collections import Counter
from itertools import combinations

import pytest
import torch

from minisd.sticker.world.sampling import COUNTS_BY_SIZE, MIN_GAP, MIN_SEPARATION, sample_scene, scene_from_seed
from minisd.sticker.world.scene import RELATIONS, SIZES
from minisd.sticker.world.shapes import SHAPES, extent

SCENES = [scene_from_seed(seed) for seed in range(4000)]
PAIRS = [scene for scene in SCENES if scene.relation is not None]
SEVERAL = [scene_from_seed(seed, two=0, several=1) for seed in range(300)]


def test_a_seed_determines_the_scene_and_the_global_generator_is_not_used():
    before = torch.get_rng_state()
    assert [scene_from_seed(seed) for seed in range(50)] == SCENES[:50]
    assert sample_scene(torch.Generator().manual_seed(7)) == SCENES[7]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(SCENES)) == len(SCENES)


def test_objects_are_inside_the_canvas_and_have_the_radius_of_their_size():
    for scene in SCENES + SEVERAL:
        for obj in scene.objects:
            left, right, up, down = (extent * obj.radius for extent in extent(obj.shape))
            assert min(obj.x - left, 1 - obj.x - right, obj.y - up, 1 - obj.y - down) >= 0.02
            assert SIZES[obj.size][0] <= obj.radius <= SIZES[obj.size][1]


def test_two_objects_are_apart_and_their_relation_is_unambiguous():
    for scene in PAIRS:
        a, b = scene.objects
        dx, dy = abs(a.x - b.x), abs(a.y - b.y)
        assert max(dx, dy) >= MIN_SEPARATION - 1e-9
        assert min(dx, dy) <= 0.7 * max(dx, dy) + 1e-9
        first, second = {"left of": (a, b), "right of": (b, a), "above": (a, b), "below": (b, a)}[scene.relation]
        if dx > dy:
            gap = second.x - first.x - extent(first.shape).right * first.radius
            gap -= extent(second.shape).left * second.radius
        else:
            gap = second.y - first.y - extent(first.shape).down * first.radius
            gap -= extent(second.shape).up * second.radius
        assert gap >= MIN_GAP - 1e-9
        assert (a.shape, a.colour) != (b.shape, b.colour)


def test_several_of_a_kind_are_apart_and_of_every_count_and_shape():
    for scene in SEVERAL:
        assert scene.alike
        assert scene.relation is None
        for a, b in combinations(scene.objects, 2):
            assert (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)
            first, second = extent(a.shape), extent(b.shape)
            right, left = b.x - a.x - first.right * a.radius, a.x - b.x - first.left * a.radius
            below, above = b.y - a.y - first.down * a.radius, a.y - b.y - first.up * a.radius
            gaps = [right - second.left * b.radius, left - second.right * b.radius]
            gaps += [below - second.up * b.radius, above - second.down * b.radius]
            assert max(gaps) >= MIN_GAP - 1e-6
    kinds = Counter((scene.objects[0].size, len(scene.objects)) for scene in SEVERAL)
    assert set(kinds) == {(size, count) for size, counts in COUNTS_BY_SIZE.items() for count in counts}
    numbers = Counter(len(scene.objects) for scene in SEVERAL)
    assert all(numbers[n] / len(SEVERAL) == pytest.approx(1 / 4, abs=0.08) for n in (2, 3, 4, 5))
    assert {scene.objects[0].shape for scene in SEVERAL} == set(SHAPES)


def test_proportions():
    assert len(PAIRS) / len(SCENES) == pytest.approx(0.4, abs=0.03)
    assert sum(scene.alike for scene in SCENES) / len(SCENES) == pytest.approx(0.1, abs=0.02)
    assert sum(scene.background == "white" for scene in SCENES) / len(SCENES) == pytest.approx(0.55, abs=0.03)
    relations = Counter(scene.relation for scene in PAIRS)
    assert all(relations[name] / len(PAIRS) == pytest.approx(0.25, abs=0.04) for name in RELATIONS)
    shapes = Counter(obj.shape for scene in SCENES for obj in scene.objects)
    assert all(shapes[name] / shapes.total() == pytest.approx(1 / len(SHAPES), abs=0.02) for name in SHAPES)
    assert all(len(scene_from_seed(seed, two=1.0).objects) == 2 for seed in range(20))
