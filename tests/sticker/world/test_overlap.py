"""Overlapping objects: how much is hidden, and masks and depth maps of both."""

import math

import pytest
import torch
from torch.nn.functional import max_pool2d

from minisd.sticker.world.overlap import HIDDEN_SHARE, MAX_HIDDEN_CONTOUR, hidden_share
from minisd.sticker.world.render import depth, draw_layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import SIZES, Object, Scene
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.splits import held_out

SCENES = [scene_from_seed(seed, two=1, overlapping=1) for seed in range(300)]


def test_enough_of_both_is_visible() -> None:
    whole, seen = draw_layers(SCENES).paint, masks(SCENES)
    share = 1 - seen.sum((2, 3)) / whole.sum((2, 3))
    assert torch.equal(share[:, 1], torch.zeros(len(SCENES)))
    assert float(share[:, 0].min()) > HIDDEN_SHARE[0] - 0.05
    assert float(share[:, 0].max()) < HIDDEN_SHARE[1] + 0.05
    assert {scene.objects[k].shape for scene in SCENES for k in (0, 1)} == set(SHAPES)
    for scene in SCENES:
        behind, front = scene.objects
        assert scene.relation == "behind"
        assert behind.colour != front.colour
        for obj in scene.objects:
            left, right, up, down = obj.extent
            assert min(obj.x - left, 1 - obj.x - right, obj.y - up, 1 - obj.y - down) >= 0.0299
            assert SIZES[obj.size][0] <= obj.radius <= SIZES[obj.size][1]


def test_the_hidden_part_belongs_to_the_front_object() -> None:
    behind, front = Object("square", "blue", "large", 0.4, 0.5, 0.2), Object("circle", "red", "large", 0.6, 0.5, 0.19)
    scene = Scene((behind, front), "gray", overlapping=True)
    seen, alone = masks([scene])[0], masks([Scene((front,))])[0, 0]
    assert torch.equal(seen[1], alone)
    assert float((seen[0] * (alone > 0.999)).max()) == 0
    assert torch.allclose(seen[0], draw_layers([scene]).paint[0, 0] * (1 - alone))
    near = depth([scene])[0, 0]
    assert torch.equal(near[alone == 1], depth([Scene((front,))])[0, 0][alone == 1])
    assert near[alone == 1].min() >= 0.5
    assert near[(alone == 0) & (seen[0] > 0)].max() <= 0.5
    assert near[(alone == 0) & (seen[0] == 0)].max() == 0
    assert render([scene])[0, 0, 32, 36] > 0.7  # red in the overlap
    assert not held_out(scene)


def test_the_hidden_share_by_hand() -> None:
    offsets = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    shares = hidden_share("circle", 0.2, "circle", 0.1, offsets)
    assert shares.tolist() == pytest.approx([0.25, 0.0], abs=0.03)
    half = torch.tensor([[0.2 * math.sqrt(math.pi), 0.0]])  # the large square begins at the centre of the small one
    for contour in (False, True):
        share = hidden_share("square", 0.1, "square", 0.4, half, contour)
        assert share.item() == pytest.approx(0.5, abs=0.03)


def test_no_whole_side_is_hidden() -> None:
    """Behind a long side of the diamond a smaller triangle would look the same."""
    scenes = SCENES[:120]
    whole, seen = draw_layers(scenes, 256).paint[:, 0], masks(scenes, 256)[:, 0]
    line = (max_pool2d(whole, 3, 1, 1) - whole > 0.5) | (whole + max_pool2d(-whole, 3, 1, 1) > 0.5)
    share = 1 - (line & (seen == whole)).sum((1, 2)) / line.sum((1, 2))
    assert float(share.max()) < 0.37
    offset = torch.tensor([[0.1877, -0.1488]])
    assert hidden_share("triangle", 0.1235, "diamond", 0.1942, offset, contour=True) > MAX_HIDDEN_CONTOUR
