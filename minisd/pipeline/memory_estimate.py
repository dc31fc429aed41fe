"""How much memory a run will take, from the sizes alone: the largest of its stages, without the weights."""

import math

from minisd.configs import UNetConfig, VAEConfig
from minisd.pipeline.views import Views

# Floating-point numbers that are held at once; measured on the CPU with the sizes of SD 1.5 at 512 and 768 pixels
UNET_FLOATS = 40  # for each latent cell, row of the batch, and channel of the first level
DECODER_FLOATS = 3.5  # for each pixel of one image, and channel of the second level
OUTPUT_FLOATS = 9  # for each pixel of all images: three colours, and copies of them


def run_bytes(
    unet: UNetConfig, vae: VAEConfig, shape: tuple[int, int, int, int], views: Views, guided: bool, itemsize: int = 4
) -> int:
    """The bytes that denoising and decoding latents of `shape` (B, C, h, w) take at their peak.

    views: each is a row of the UNet's batch. guided: guidance doubles the rows. itemsize: the bytes of a number in the
    networks.
    """
    count, _, h, w = shape
    cells, pixels = math.prod(views.cells), h * w * vae.downscale**2
    rows = count * len(views) * (2 if guided else 1)
    denoising = UNET_FLOATS * unet.channels[0] * cells * rows * itemsize
    decoding = DECODER_FLOATS * vae.channels[:2][-1] * pixels * itemsize + 12 * count * pixels
    return int(max(denoising, decoding, OUTPUT_FLOATS * 4 * count * pixels))
