"""Pixels that belong together: connected regions of a mask, and how much paint is in each pixel.

A pixel on an edge is a mixture of object and background, and so is a blurred one; projecting it onto the line
between the two colours recovers the mixture, so areas, centroids and the comparison with our own drawings
survive blur.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

MIN_AREA = 60 / 128**2  # of the canvas; smaller specks are not objects
MIXTURE = 0.35  # distance in RGB of [-1, 1] beyond which a pixel is no mixture of ground and paint


def components(mask: Tensor) -> Tensor:
    """Label the 8-connected regions of a boolean (H, W) mask: -> int64 (H, W), 0 outside, 1, 2, ... inside.

    Every pixel starts with its own number, takes the highest of its neighbours', then the one that pixel
    has by now (a jump to a pixel of the same region), until nothing changes.
    """
    inside = mask.float()
    label = inside * torch.arange(1, mask.numel() + 1, device=mask.device).view(mask.shape)
    while True:
        highest = max_pool2d(label[None], 3, 1, 1)[0] * inside
        jump = highest.flatten()[highest.flatten().long().clamp(min=1) - 1].view(mask.shape) * inside
        if torch.equal(jump, label):
            break
        label = jump
    numbers = label[mask].unique()
    return torch.where(mask, torch.searchsorted(numbers, label) + 1, 0)


def regions(mask: Tensor, least: float = MIN_AREA) -> list[Tensor]:
    """The connected regions of a mask as masks, without those below a fraction `least` of the canvas."""
    labels = components(mask)
    areas = labels.flatten().bincount()
    return [labels == n for n in range(1, len(areas)) if areas[n] >= least * mask.numel()]


def cover(pixels: Tensor, ground: Tensor, paint: Tensor) -> Tensor:
    """How much paint is mixed into the ground in each pixel, in [0, 1]."""
    span = paint - ground
    return ((pixels - ground) @ span / span.square().sum().clamp(min=1e-6)).clamp(0, 1)


def unlike(pixels: Tensor, ground: Tensor, paint: Tensor) -> Tensor:
    """How far each pixel is from the mixtures of ground and paint."""
    return (pixels - torch.lerp(ground, paint, cover(pixels, ground, paint)[..., None])).norm(dim=-1)


def core(own: Tensor) -> Tensor:
    """The pixels furthest from the edge, where the paint is pure: eroded twice, if something is left."""
    for _ in range(2):
        smaller = erode(own)
        if smaller.sum() < MIN_AREA / 4 * own.numel():
            break
        own = smaller
    return own


def dilate(mask: Tensor, times: int = 1) -> Tensor:
    """A mask and the pixels around it, `times` over."""
    for _ in range(times):
        mask = max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0
    return mask


def erode(mask: Tensor) -> Tensor:
    """A mask without the pixels at its edge."""
    return ~dilate(~mask)
