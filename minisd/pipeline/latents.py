"""Pixels to latents and back through the autoencoder, scaled for the UNet."""

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minisd._internal.nonfinite import explain_nonfinite
from minisd.errors import NumericalError
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


def decode_finite(vae: VAE, latents: Tensor) -> Tensor:
    """The same, clamped to [-1, 1]; where it is not finite in half precision, once more in float32, with a warning.

    Raises NumericalError where pixels are still not finite.
    """
    pixels = decode_latents(vae, latents)
    dtype = vae.from_latents.weight.dtype
    if not torch.isfinite(pixels).all() and dtype != torch.float32:
        warnings.warn(f"the decoder overflowed in {dtype}; decoding again in float32", stacklevel=5)
        pixels = decode_latents(copy.deepcopy(vae).float(), latents)
    if not torch.isfinite(pixels).all():
        raise NumericalError(f"the decoded pixels are not finite: {explain_nonfinite(vae)}.")
    return pixels.clamp(-1, 1)


def _safe_copy(vae: VAE) -> VAE:
    """SDXL's autoencoder overflows in float16: a float32 copy of it; any other as it is."""
    is_half = vae.from_latents.weight.dtype == torch.float16
    return copy.deepcopy(vae).float() if is_half and vae.config.force_upcast else vae
