"""The loop's inputs: noise or a noised image to begin with, and the channels that the UNet reads beside the latents."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.models import VAE
from minisd.pipeline.latents import Randn, encode_pixels
from minisd.pipeline.request import Request
from minisd.schedulers import NoiseSchedule


class InitialLatents(NamedTuple):
    """What the loop begins with; all tensors are (B, ...) in latent cells.

    x: the noisy latents, and noise: the noise in them. extra_channels: what the UNet reads beside x. low_res_level: the
    noise level of an upscaler's small image. image_latents: of the given image; repaint_mask: 1 where x is repainted,
    0 where the given image is restored after each step.
    """

    x: Tensor
    noise: Tensor
    extra_channels: list[Tensor]
    low_res_level: Tensor | None
    image_latents: Tensor | None
    repaint_mask: Tensor | None


def prepare_latents(
    request: Request, vae: VAE, low_res: NoiseSchedule, device: torch.device, randn: Randn
) -> InitialLatents:
    """The initial latents of a request. Noise is drawn in the reference's order, so that seeds mean the same.

    With one generator, the noise of a given image's latents is drawn once, however many images begin with it; with
    one for each image, each draws its own. low_res: the noise schedule of an upscaler's small image.
    """
    count, cells = request.shape[0], request.shape[2:]
    given = (None if each is None else each.to(device) for each in (request.image, request.mask, request.depth))
    if len(request.generators) > 1:
        given = (None if each is None else to_rows(each, count) for each in given)
    image, mask, depth = given
    image_latents, repaint_mask, low_res_level, extra_channels = None, None, None, []

    if image is not None and request.task == "upscaling":
        low_res_level = torch.full((1,), request.noise_level, device=device)
        extra_channels = [low_res.add_noise(image, randn(image.shape), request.noise_level)]
    elif image is not None and (request.task != "inpainting" or request.start > 0):
        image_latents = to_rows(encode_pixels(vae, image, randn), count)
    noise = randn(request.shape) if request.latents is None else request.latents.to(device, torch.float32)
    if image is not None and mask is not None:
        small_mask = F.interpolate(mask, size=cells)
        if request.task == "inpainting":
            pairs = max(len(image), len(mask))
            unmasked = to_rows(image, pairs) * (1 - to_rows(mask, pairs))
            extra_channels = [small_mask, encode_pixels(vae, unmasked, randn)]
        else:
            repaint_mask = to_rows(small_mask, count)
    if depth is not None:
        extra_channels = [to_unit_range(F.interpolate(depth, size=cells, mode="bicubic"))]
    extra_channels = [to_rows(each, count) for each in extra_channels]

    if request.resumed:
        x = noise
    elif image_latents is None or (mask is not None and request.start == 0):
        x = noise * request.grid.init_noise_sigma
    else:
        x = request.scheduler.add_noise(request.grid, 0, image_latents, noise)
    return InitialLatents(x, noise, extra_channels, low_res_level, image_latents, repaint_mask)


def steps_to_skip(steps: int, strength: float) -> int:
    """How many of `steps` image to image leaves out at the beginning, for a strength in 0..1."""
    return steps - int(steps * strength)


def to_rows(values: Tensor, count: int) -> Tensor:
    """Rows (n, ...), each repeated, so that there are `count`, a multiple of n."""
    return values.repeat_interleave(count // len(values), 0)


def to_unit_range(depth: Tensor) -> Tensor:
    """Depth maps (B, 1, h, w), each stretched to -1..1."""
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    return 2 * (depth - low) / (high - low).clamp(min=1e-6) - 1
