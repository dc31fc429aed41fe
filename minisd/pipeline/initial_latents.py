"""Where the loop begins: pure noise, or a given picture with noise over it; and what the UNet reads beside it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.models import VAE
from minisd.pipeline.latents import Randn, encode_pixels
from minisd.pipeline.request import Request
from minisd.schedulers import NoiseSchedule


class Start(NamedTuple):
    """What a task brings into the loop, all (B, ...): x, the noise in it, what the UNet reads beside it; the noise
    level of the small picture (upscaling), the latents of the picture given, and where x is to be kept instead of them,
    0..1.
    """

    x: Tensor
    noise: Tensor
    beside: list[Tensor]
    noise_level: Tensor | None
    picture: Tensor | None
    kept: Tensor | None


def begin(request: Request, vae: VAE, low_res: NoiseSchedule, device: torch.device, randn: Randn) -> Start:
    """The start of what was asked for. Noise is drawn in the reference's order, so that seeds mean the same.

    low_res: how an upscaler's small picture is noised.
    """
    image, mask, depth = (
        None if each is None else each.to(device) for each in (request.image, request.mask, request.depth)
    )
    cells = request.shape[2:]
    picture, kept, noise_level, beside = None, None, None, []

    if image is not None and request.task == "upscaling":
        noise_level = torch.full((1,), request.noise_level, device=device)
        beside = [low_res.add_noise(image, randn(image.shape), request.noise_level)]
    elif image is not None and (request.task != "inpainting" or request.start > 0):
        picture = encode_pixels(vae, image, randn)
    noise = randn(request.shape) if request.latents is None else request.latents.to(device, torch.float32)
    if image is not None and mask is not None:
        small_mask = F.interpolate(mask, size=cells)
        if request.task == "inpainting":
            beside = [small_mask, encode_pixels(vae, image * (1 - mask), randn)]
        else:
            kept = small_mask
    if depth is not None:
        beside = [to_unit_range(F.interpolate(depth, size=cells, mode="bicubic"))]

    if request.resumed:
        x = noise
    elif picture is None or (mask is not None and request.start == 0):
        x = noise * request.grid.init_noise_sigma
    else:
        x = request.scheduler.add_noise(request.grid, 0, picture, noise)
    return Start(x, noise, beside, noise_level, picture, kept)


def to_unit_range(depth: Tensor) -> Tensor:
    """Each (1, h, w) of a batch stretched to -1..1."""
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    return 2 * (depth - low) / (high - low).clamp(min=1e-6) - 1
