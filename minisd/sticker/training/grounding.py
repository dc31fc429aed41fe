"""A loss on cross-attention: inside an object's mask, attention should go to the tokens that name the object.

Cross-attention learns this by itself, but late. The masks of the objects are known here, so that it can be trained
directly (TokenCompose, Wang et al. 2024).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.sticker.world.render import masks
from minisd.sticker.world.scene import Scene

TARGET_SHARE = 0.5  # of the attention; the rest is free for positions, relations and the background
MAX_OBJECTS = 2  # that a caption names


def object_masks(scenes: Sequence[Scene], size: int, cells: int) -> Tensor:
    """The coverage of cells x cells by each named object: (B, MAX_OBJECTS, cells, cells); several of a kind are one."""
    parts = []
    for start in range(0, len(scenes), 256):  # full-size masks need much memory
        some = scenes[start : start + 256]
        cover = F.avg_pool2d(masks(some, size), size // cells)
        cover = F.pad(cover, (0, 0, 0, 0, 0, max(MAX_OBJECTS - cover.shape[1], 0)))
        alike = torch.tensor([scene.alike for scene in some]).view(-1, 1, 1, 1)
        together = F.pad(cover.sum(1, keepdim=True), (0, 0, 0, 0, 0, MAX_OBJECTS - 1))
        parts.append(torch.where(alike, together, cover[:, :MAX_OBJECTS]))
    return torch.cat(parts)


def token_masks(nouns: Sequence[Sequence[Sequence[int]]], length: int) -> Tensor:
    """For each caption and object, 1 at the tokens that name it: (B, MAX_OBJECTS, length).

    nouns: the indices of the words that name each object, see `noun_indices`.
    """
    tokens = torch.zeros(len(nouns), MAX_OBJECTS, length)
    for b, objects in enumerate(nouns):
        for k, indices in enumerate(objects):
            tokens[b, k, [i + 1 for i in indices]] = 1  # every word is one token, after the start token
    return tokens


def grounding_loss(weights: Sequence[Tensor], objects: Tensor, tokens: Tensor, visibility: Tensor) -> Tensor:
    """-log of the share of attention inside an object that goes to its tokens, up to TARGET_SHARE; mean over layers.

    weights: the attention weights (B, heads, cells, L) of each layer, cells in a square grid; objects (B, MAX_OBJECTS,
    h, w) in 0..1; tokens (B, MAX_OBJECTS, L); visibility (B,): the weight of each image, since objects cannot be
    located in noise.  -> scalar.
    """
    total = torch.zeros((), device=objects.device)
    named = tokens.amax(-1) * visibility[:, None]
    for each in weights:
        side = round(each.shape[2] ** 0.5)
        cover = F.adaptive_avg_pool2d(objects, side).flatten(2) * named[..., None]
        share = torch.einsum("bnl,bkl->bkn", each.float().mean(1), tokens)
        missed = -(share.clamp(min=1e-4) / TARGET_SHARE).log().clamp(max=0)
        total = total + (cover * missed).sum() / cover.sum().clamp(min=1e-3)
    return total / len(weights)
