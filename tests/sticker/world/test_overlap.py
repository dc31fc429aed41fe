"""One thing in front of another: how much is hidden, and whose the pixels are."""

import math

import pytest
import torch
from torch.nn.functional import max_pool2d

from minisd.sticker.world.overlap import CONTOUR, HIDDEN, hidden_share
from minisd.sticker.world.render import depth, layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import SIZES, Scene, Thing
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.splits import held_out

SCENES = [scene_from_seed(seed, two=1, overlapping=1) for seed in range(300)]


def test_enough_of_both_is_seen() -> None:
    whole, seen = layers(SCENES).paint, masks(SCENES)
    share = 1 - seen.sum((2, 3)) / whole.sum((2, 3))
    assert torch.equal(share[:, 1], torch.zeros(len(SCENES)))
    assert float(share[:, 0].min()) > HIDDEN[0] - 0.05
    assert float(share[:, 0].max()) < HIDDEN[1] + 0.05
    assert {scene.things[k].shape for scene in SCENES for k in (0, 1)} == set(THINGS)
    for scene in SCENES:
        behind, front = scene.things
        assert scene.relation == "behind"
        assert behind.colour != front.colour
        for thing in scene.things:
            left, right, up, down = thing.reach
            assert min(thing.x - left, 1 - thing.x - right, thing.y - up, 1 - thing.y - down) >= 0.0299
            assert SIZES[thing.size][0] <= thing.radius <= SIZES[thing.size][1]


def test_what_is_hidden_is_the_front_things() -> None:
    behind, front = Thing("square", "blue", "large", 0.4, 0.5, 0.2), Thing("circle", "red", "large", 0.6, 0.5, 0.19)
    scene = Scene((behind, front), "gray", overlapping=True)
    seen, alone = masks([scene])[0], masks([Scene((front,))])[0, 0]
    assert torch.equal(seen[1], alone)
    assert float((seen[0] * (alone > 0.999)).max()) == 0
    assert torch.allclose(seen[0], layers([scene]).paint[0, 0] * (1 - alone))
    near = depth([scene])[0, 0]
    assert torch.equal(near[alone == 1], depth([Scene((front,))])[0, 0][alone == 1])
    assert near[alone == 1].min() >= 0.5
    assert near[(alone == 0) & (seen[0] > 0)].max() <= 0.5
    assert near[(alone == 0) & (seen[0] == 0)].max() == 0
    assert render([scene])[0, 0, 32, 36] > 0.7  # red where both are
    assert not held_out(scene)


def test_the_share_by_hand() -> None:
    offsets = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    shares = hidden_share("circle", 0.2, "circle", 0.1, offsets)
    assert shares.tolist() == pytest.approx([0.25, 0.0], abs=0.03)
    half = torch.tensor([[0.2 * math.sqrt(math.pi), 0.0]])  # the large square begins at the middle of the small one
    for contour in (False, True):
        share = hidden_share("square", 0.1, "square", 0.4, half, contour)
        assert share.item() == pytest.approx(0.5, abs=0.03)


def test_no_whole_side_is_hidden() -> None:
    """Behind a long side of the diamond the triangle could be smaller, and nobody would know."""
    whole, seen = layers(SCENES, 256).paint[:, 0], masks(SCENES, 256)[:, 0]
    line = (max_pool2d(whole, 3, 1, 1) - whole > 0.5) | (whole + max_pool2d(-whole, 3, 1, 1) > 0.5)
    share = 1 - (line & (seen == whole)).sum((1, 2)) / line.sum((1, 2))
    assert float(share.max()) < 0.37
    offset = torch.tensor([[0.1877, -0.1488]])
    assert hidden_share("triangle", 0.1235, "diamond", 0.1942, offset, contour=True) > CONTOUR
