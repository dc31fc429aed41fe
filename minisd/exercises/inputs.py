"""Tensors for the cases: of unequal sizes, drawn from a seed."""

from typing import Any

import torch
from torch import Tensor


def normal(*shape: int, seed: int) -> Tensor:
    """Unit noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers."""
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def image_to_image(sd: Any, strength: float = 0.7) -> dict[str, Any]:
    """The options of a run that begins with an image, of the size of the pipeline's images."""
    sides = [sd.vae.config.downscale * side for side in sd.unet.config.cells]
    return {"image": normal(1, 3, *sides, seed=3).clamp(-1, 1), "strength": strength}
