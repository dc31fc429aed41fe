"""The grounding loss: masks of objects and tokens, and the loss for attention to them and to other tokens."""

import pytest
import torch
from torch import Tensor

from minisd.interpret.attention_maps import attention_weights
from minisd.sticker.training.grounding import grounding_loss, object_masks, token_masks
from minisd.sticker.training.unet import new_unet
from minisd.sticker.world.scene import Object, Scene

STAR = Object("star", "red", "large", 0.25, 0.25, 0.19)
RING = Object("ring", "blue", "small", 0.75, 0.75, 0.09)


def test_object_masks() -> None:
    alike = Scene(tuple(Object("circle", "red", "small", x, 0.25, 0.09) for x in (0.25, 0.75)))
    masks = object_masks([Scene((STAR,)), Scene((STAR, RING)), alike], 64, 8)
    assert masks.shape == (3, 2, 8, 8)
    assert masks[0, 0, 2, 2] > 0.9
    assert masks[0, 1].sum() == 0
    assert masks[1, 1, 4:, 4:].sum() == masks[1, 1].sum() > 0
    assert masks[2, 0, :4, :4].sum() > 0 < masks[2, 0, :4, 4:].sum()
    assert masks[2, 1].sum() == 0
    area = torch.pi * 0.09**2 * 64
    assert masks[2, 0].sum() == pytest.approx(2 * area, rel=0.02)


def attention(token: int, length: int = 6, cells: int = 16) -> Tensor:
    """The weights of two heads that attend to one token everywhere."""
    weights = torch.full((1, 2, cells, length), 1e-6)
    weights[..., token] = 1
    return weights


def test_attention_to_the_objects_tokens_costs_nothing_and_to_others_much() -> None:
    objects = torch.zeros(1, 2, 4, 4)
    objects[0, 0, :2] = 1
    tokens = token_masks([[[1, 2], []]], 6)
    assert tokens[0, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert tokens[0, 1].sum() == 0
    visible = torch.ones(1)
    assert grounding_loss([attention(2)], objects, tokens, visible) == 0
    away = grounding_loss([attention(5)], objects, tokens, visible)
    assert away > 5
    assert grounding_loss([attention(5), attention(2)], objects, tokens, visible) == pytest.approx(away.item() / 2)
    one_head = attention(5)
    one_head[:, 0] = attention(3)[:, 0]  # half of the attention is enough
    assert grounding_loss([one_head], objects, tokens, visible) == pytest.approx(0, abs=1e-4)
    assert grounding_loss([attention(5)], objects, tokens, torch.zeros(1)) == 0
    outside = attention(2)
    outside[:, :, 8:] = attention(5)[:, :, 8:]  # the second half of the cells shows nothing
    assert grounding_loss([outside], objects, tokens, visible) == 0


def test_the_weights_of_all_layers_are_collected() -> None:
    unet, weights = new_unet(), []
    with attention_weights(unet, lambda level, part, each: weights.append(each)):
        unet(torch.zeros(2, 4, 16, 16), 5, torch.zeros(2, 7, 128))
    assert weights[0].shape == (2, 4, 64, 7)
    assert len(weights) == 7
    unet(torch.zeros(2, 4, 16, 16), 5, torch.zeros(2, 7, 128))
    assert len(weights) == 7
