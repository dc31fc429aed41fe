"""Draw several, keep the best: CLIP says which picture is closest to its prompt (Ramesh et al. 2021, section 2.6)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.errors import InputError
from minisd.models import CLIP
from minisd.tokenizer import Tokenizer


@torch.no_grad()
def likeness(clip: CLIP, tokenizer: Tokenizer, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """How close each picture is to its own prompt: pixels (B, 3, H, W) in [-1, 1], B texts -> cosines (B,).

    Pictures are brought to CLIP's size: the shorter side by bicubic interpolation, of the longer one the middle.
    Raises InputError for another number of prompts.
    """
    if pixels.ndim != 4 or len(pixels) != len(prompts):
        raise InputError(f"there are {len(prompts)} prompts for pictures of shape {tuple(pixels.shape)}; give as many.")
    device = clip.logit_scale.device
    texts = clip.embed_texts(tokenizer(list(prompts)).to(device))
    return (clip.embed_images(fitted(pixels.to(device), clip.image_encoder.config.image_size)) * texts).sum(1)


def best(scores: Tensor, of: int) -> list[int]:
    """Of every `of` pictures in a row, the index of the one with the highest score. Raises InputError."""
    if of < 1 or len(scores) % of:
        raise InputError(f"{len(scores)} scores do not make groups of {of}; draw as many for each prompt.")
    return [start + int(scores[start : start + of].argmax()) for start in range(0, len(scores), of)]


def fitted(pixels: Tensor, size: int) -> Tensor:
    """Pictures (B, 3, H, W) as CLIP's own preprocessing would have them: (B, 3, size, size)."""
    height, width = pixels.shape[2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        sides = max(size, int(height * scale)), max(size, int(width * scale))
        pixels = F.interpolate(pixels, size=sides, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = ((side - size) // 2 for side in pixels.shape[2:])
    return pixels[:, :, top : top + size, left : left + size]
