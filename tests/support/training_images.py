"""Images to fine-tune small models with."""

import torch
import torch.nn.functional as F

from minisd.training.captioned_images import CaptionedImages


def training_images(text: str, count: int = 5, seed: int = 0) -> CaptionedImages:
    """Smooth random images of 16 x 16 pixels, all with one caption."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return CaptionedImages(F.interpolate(coarse, size=16, mode="bilinear"), [text] * count)
