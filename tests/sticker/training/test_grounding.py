"""Where attention should look: words, masks, and what it costs to look elsewhere."""

import pytest
import torch
from torch import Tensor

from minisd.sticker.training.grounding import grounding_loss, thing_masks, watched, word_masks
from minisd.sticker.training.unet import new_unet
from minisd.sticker.world.captions import describe, expectation_of, noun_places
from minisd.sticker.world.scene import Scene, Thing

STAR = Thing("star", "red", "large", 0.25, 0.25, 0.19)
RING = Thing("ring", "blue", "small", 0.75, 0.75, 0.09)


def words_of(text: str, scene: Scene, **changes: object) -> list[list[str]]:
    wanted = expectation_of(scene)
    return [[text.split()[i] for i in places] for places in noun_places(text, wanted)]


def test_the_words_of_each_thing_however_it_is_put() -> None:
    scene = Scene((STAR, RING))
    expected = [["large", "red", "star"], ["small", "blue", "ring"]]
    assert words_of("a large red star left of a small blue ring", scene) == expected
    assert words_of("a small blue ring with a large red star above it on a gray background", scene) == expected
    twins = Scene(tuple(Thing("star", "red", "small", x, 0.5, 0.09) for x in (0.2, 0.5, 0.8)))
    assert words_of("there are three small red stars", twins) == [["three", "small", "red", "stars"]]


def test_every_caption_names_its_things() -> None:
    scene, generator = Scene((STAR, RING), "gray"), torch.Generator().manual_seed(0)
    wanted = expectation_of(scene)
    for _ in range(100):
        text = describe(wanted, generator)
        named = [[text.split()[i] for i in places] for places in noun_places(text, wanted)]
        assert named == [["large", "red", "star"], ["small", "blue", "ring"]]


def test_two_of_one_name_are_nobody() -> None:
    scene = Scene((STAR, RING))
    wanted = expectation_of(scene)
    open_things = tuple(type(thing)() for thing in wanted.things)
    alike = type(wanted)(open_things, "left of")
    assert noun_places("a shape left of a shape", alike) == [[], []]


def test_masks() -> None:
    alike = Scene(tuple(Thing("circle", "red", "small", x, 0.25, 0.09) for x in (0.25, 0.75)))
    masks = thing_masks([Scene((STAR,)), Scene((STAR, RING)), alike], 64, 8)
    assert masks.shape == (3, 2, 8, 8)
    assert masks[0, 0, 2, 2] > 0.9
    assert masks[0, 1].sum() == 0
    assert masks[1, 1, 4:, 4:].sum() == masks[1, 1].sum() > 0
    assert masks[2, 0, :4, :4].sum() > 0 < masks[2, 0, :4, 4:].sum()
    assert masks[2, 1].sum() == 0
    area = torch.pi * 0.09**2 * 64
    assert masks[2, 0].sum() == pytest.approx(2 * area, rel=0.02)


def attention(token: int, length: int = 6, cells: int = 16) -> Tensor:
    """Two heads that look at one token everywhere."""
    weights = torch.full((1, 2, cells, length), 1e-6)
    weights[..., token] = 1
    return weights


def test_looking_at_the_words_costs_nothing_and_elsewhere_much() -> None:
    things = torch.zeros(1, 2, 4, 4)
    things[0, 0, :2] = 1
    words = word_masks([[[1, 2], []]], 6)
    assert words[0, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert words[0, 1].sum() == 0
    clear = torch.ones(1)
    assert grounding_loss([attention(2)], things, words, clear) == 0
    away = grounding_loss([attention(5)], things, words, clear)
    assert away > 5
    assert grounding_loss([attention(5), attention(2)], things, words, clear) == pytest.approx(away.item() / 2)
    one_head = attention(5)
    one_head[:, 0] = attention(3)[:, 0]  # half of the attention is enough
    assert grounding_loss([one_head], things, words, clear) == pytest.approx(0, abs=1e-4)
    assert grounding_loss([attention(5)], things, words, torch.zeros(1)) == 0
    outside = attention(2)
    outside[:, :, 8:] = attention(5)[:, :, 8:]  # the second half of the cells shows nothing
    assert grounding_loss([outside], things, words, clear) == 0


def test_watching_ends() -> None:
    unet = new_unet()
    with watched(unet) as seen:
        unet(torch.zeros(2, 4, 16, 16), 5, torch.zeros(2, 7, 128))
    assert seen[0].shape == (2, 4, 64, 7)
    assert len(seen) == 7
    unet(torch.zeros(2, 4, 16, 16), 5, torch.zeros(2, 7, 128))
    assert len(seen) == 7
