"""Show the UNet where to look: inside of a thing, attention should go to the words that name it.

Cross-attention finds out by itself which words belong to which place, but late; the masks of the things are known here,
so it can be told (TokenCompose, Wang et al. 2024).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.models import UNet
from minisd.models.unet import TransformerBlock
from minisd.sticker.world.render import masks
from minisd.sticker.world.scene import Scene

ENOUGH = 0.5  # of the attention, the mean over the heads: the rest is free for places, relations and the background
MOST = 2  # things that captions name


@contextmanager
def watched(unet: UNet) -> Iterator[list[Tensor]]:
    """Collect the weights (B, heads, cells, L) of every cross-attention, as they are computed."""
    seen: list[Tensor] = []
    blocks = [module for module in unet.modules() if isinstance(module, TransformerBlock)]
    for block in blocks:
        block.attention2.watch = seen.append
    try:
        yield seen
    finally:
        for block in blocks:
            block.attention2.watch = None


def thing_masks(scenes: Sequence[Scene], size: int, cells: int) -> Tensor:
    """How much of each of cells x cells each named thing covers: (B, MOST, cells, cells); several alike are one."""
    parts = []
    for start in range(0, len(scenes), 256):  # at full size they are large
        some = scenes[start : start + 256]
        cover = F.avg_pool2d(masks(some, size), size // cells)
        cover = F.pad(cover, (0, 0, 0, 0, 0, max(MOST - cover.shape[1], 0)))
        alike = torch.tensor([scene.alike for scene in some]).view(-1, 1, 1, 1)
        together = F.pad(cover.sum(1, keepdim=True), (0, 0, 0, 0, 0, MOST - 1))
        parts.append(torch.where(alike, together, cover[:, :MOST]))
    return torch.cat(parts)


def word_masks(places: Sequence[Sequence[Sequence[int]]], length: int) -> Tensor:
    """For each caption and thing, 1 at the tokens that name it: (B, MOST, length).  places: words, counted from 0."""
    words = torch.zeros(len(places), MOST, length)
    for b, things in enumerate(places):
        for k, found in enumerate(things):
            words[b, k, [i + 1 for i in found]] = 1  # every word is one token, after the start token
    return words


def grounding_loss(weights: Sequence[Tensor], things: Tensor, words: Tensor, clarity: Tensor) -> Tensor:
    """By how much attention within the things misses their words, as -log of its share, in the mean over the layers.

    weights: as `watched` collects them, cells in a square grid; things (B, MOST, h, w) in 0..1; words (B, MOST, L);
    clarity (B,): how much of the picture can be seen, since nobody can look for a thing in noise.  -> scalar.
    """
    total = torch.zeros((), device=things.device)
    named = words.amax(-1) * clarity[:, None]
    for each in weights:
        side = round(each.shape[2] ** 0.5)
        cover = F.adaptive_avg_pool2d(things, side).flatten(2) * named[..., None]
        share = torch.einsum("bnl,bkl->bkn", each.float().mean(1), words)
        missed = -(share.clamp(min=1e-4) / ENOUGH).log().clamp(max=0)
        total = total + (cover * missed).sum() / cover.sum().clamp(min=1e-3)
    return total / len(weights)
