"""Pixels to latents and back, through the autoencoder: here its scaling factor is applied, and nowhere else below."""

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minisd._internal.nonfinite import diagnosis
from minisd.errors import NumericalError
from minisd.models import VAE

Randn = Callable[[Sequence[int]], Tensor]  # a shape -> unit noise


def encode_pixels(vae: VAE, pixels: Tensor, randn: Randn) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) of about unit variance, float32."""
    vae = _without_overflow(vae)
    gauss = vae.encode(pixels.to(vae.from_latents.weight.dtype))
    latents = gauss.mean.float() + gauss.std.float() * randn(gauss.mean.shape).to(gauss.mean.device)
    return latents * vae.config.scaling_factor


def decode_latents(vae: VAE, latents: Tensor) -> Tensor:
    """Latents of about unit variance (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], one picture at a time.

    Raises NumericalError when pixels are not finite; half precision is tried once more in float32 before.
    """
    weight = vae.from_latents.weight
    raw = (latents / vae.config.scaling_factor).to(weight.device)
    pixels = _decode_each(_without_overflow(vae), raw)
    if not torch.isfinite(pixels).all() and weight.dtype != torch.float32:
        warnings.warn(f"the decoder overflowed in {weight.dtype}; decoding again in float32", stacklevel=4)
        pixels = _decode_each(copy.deepcopy(vae).float(), raw)
    if not torch.isfinite(pixels).all():
        raise NumericalError(f"the decoded pixels are not finite: {diagnosis(vae)}.")
    return pixels.clamp(-1, 1)


def _without_overflow(vae: VAE) -> VAE:
    """SDXL's autoencoder overflows in float16: of it a float32 copy."""
    half = vae.from_latents.weight.dtype == torch.float16
    return copy.deepcopy(vae).float() if half and vae.config.force_upcast else vae


def _decode_each(vae: VAE, raw: Tensor) -> Tensor:
    dtype = vae.from_latents.weight.dtype
    return torch.cat([vae.decode(z[None].to(dtype)).float() for z in raw])
