"""Pixels to latents and back through the autoencoder, scaled for the UNet."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minisd.models import VAE

Randn = Callable[[Sequence[int]], Tensor]  # a shape -> unit noise


def encode_pixels(vae: VAE, pixels: Tensor, randn: Randn) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) of about unit variance, float32."""
    vae = _safe_copy(vae)
    gauss = vae.encode(pixels.to(vae.from_latents.weight.dtype))
    latents = gauss.mean.float() + gauss.std.float() * randn(gauss.mean.shape).to(gauss.mean.device)
    return vae.scaled(latents)


def decode_latents(vae: VAE, latents: Tensor) -> Tensor:
    """Latents of about unit variance (B, C, h, w) -> pixels (B, 3, H, W), not clamped, one image at a time."""
    vae = _safe_copy(vae)
    weight = vae.from_latents.weight
    raw = vae.raw(latents).to(weight.device)
    return torch.cat([vae.decode(z[None].to(weight.dtype)).float() for z in raw])


def _safe_copy(vae: VAE) -> VAE:
    """SDXL's autoencoder overflows in float16: a float32 copy of it; any other as it is."""
    is_half = vae.from_latents.weight.dtype == torch.float16
    return copy.deepcopy(vae).float() if is_half and vae.config.force_upcast else vae
