"""Approximate images of latents by a small decoder, for the steps of a run; the VAE's decoder stays the exact one."""

import torch
from torch import Tensor

from minisd._internal.nonfinite import explain_nonfinite
from minisd.errors import InputError, NumericalError
from minisd.models import VAE, PreviewDecoder


def fitting_decoder(decoder: PreviewDecoder | None, vae: VAE) -> PreviewDecoder:
    """The preview decoder of a pipeline. Raises InputError if there is none, or if it does not fit the autoencoder."""
    if decoder is None:
        raise InputError(
            "the model has no preview decoder; set sd.preview_decoder = weights_loader.load_preview_decoder(source), "
            "on the command line --preview-decoder SOURCE, for SD 1.x and 2.x from madebyollin/taesd."
        )
    got, expected = decoder.config, vae.config
    if (got.latent_channels, got.downscale) != (expected.latent_channels, expected.downscale):
        raise InputError(
            f"the preview decoder reads {got.latent_channels} channels and enlarges {got.downscale} times, expected "
            f"{expected.latent_channels} channels and {expected.downscale} times; take one made for this model."
        )
    return decoder


def preview_pixels(decoder: PreviewDecoder, latents: Tensor) -> Tensor:
    """Latents of about unit variance (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], one image at a time.

    Raises NumericalError for pixels that are not finite.
    """
    weight = decoder.conv_in.weight
    pixels = torch.cat([decoder(z[None].to(weight.device, weight.dtype)).float() for z in latents])
    if not torch.isfinite(pixels).all():
        raise NumericalError(f"the pixels of the preview are not finite: {explain_nonfinite(decoder)}.")
    return pixels.clamp(-1, 1)
