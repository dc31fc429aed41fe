"""Generate several images and keep the one with the highest CLIP score (Ramesh et al. 2021, section 2.6)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.errors import InputError
from minisd.models import CLIP
from minisd.tokenizer import Tokenizer


@torch.no_grad()
def clip_scores(clip: CLIP, tokenizer: Tokenizer, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """The CLIP similarity of each image to its own prompt: pixels (B, 3, H, W) in [-1, 1], B texts -> cosines (B,).

    Images of any size are resized and cropped to CLIP's size. Raises InputError for another number of prompts.
    """
    if pixels.ndim != 4 or len(pixels) != len(prompts):
        raise InputError(f"{len(prompts)} prompts for images of shape {tuple(pixels.shape)}, expected one for each.")
    device = clip.logit_scale.device
    texts = clip.embed_texts(tokenizer(list(prompts)).to(device))
    images = resize_and_crop(pixels.to(device), clip.image_encoder.config.image_size)
    return (clip.embed_images(images) * texts).sum(1)


def best_of(scores: Tensor, group_size: int) -> list[int]:
    """The index of the highest score in every group of `group_size` consecutive images. Raises InputError."""
    if group_size < 1 or len(scores) % group_size:
        raise InputError(f"{len(scores)} scores do not make groups of {group_size}; score as many for each prompt.")
    return [start + int(scores[start : start + group_size].argmax()) for start in range(0, len(scores), group_size)]


def resize_and_crop(pixels: Tensor, size: int) -> Tensor:
    """Pixels (B, 3, H, W) -> (B, 3, size, size), as CLIP's preprocessing does: bicubic resize, centre crop."""
    height, width = pixels.shape[2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        resized = max(size, int(height * scale)), max(size, int(width * scale))
        pixels = F.interpolate(pixels, size=resized, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = ((side - size) // 2 for side in pixels.shape[2:])
    return pixels[:, :, top : top + size, left : left + size]
