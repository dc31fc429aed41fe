"""Connected regions of a mask, and the fraction of paint in each pixel.

A pixel on an edge, or in a blurred image, is a mixture of paint and background. Projecting it onto the line between the
two colours recovers the mixture, so that areas, centroids and comparisons with rendered objects survive blur.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

MIN_AREA = 60 / 128**2  # of the canvas; smaller specks are not objects
MAX_MIXTURE_DISTANCE = 0.35  # in RGB of [-1, 1]; a pixel further away is no mixture of paint and background


def components(mask: Tensor) -> Tensor:
    """Label the 8-connected regions of a boolean (H, W) mask: -> int64 (H, W), 0 outside, 1, 2, ... inside.

    Every pixel starts with its own number and takes the highest of its neighbours', then the current number of the
    pixel with that number (a jump within the same region), until nothing changes.
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


def connected_regions(mask: Tensor, min_area: float = MIN_AREA) -> list[Tensor]:
    """The connected regions of a mask as masks, without those below a fraction `min_area` of the canvas."""
    labels = components(mask)
    areas = labels.flatten().bincount()
    return [labels == n for n in range(1, len(areas)) if areas[n] >= min_area * mask.numel()]


def paint_fraction(pixels: Tensor, background: Tensor, paint: Tensor) -> Tensor:
    """The fraction of paint in each pixel, in [0, 1]."""
    span = paint - background
    return ((pixels - background) @ span / span.square().sum().clamp(min=1e-6)).clamp(0, 1)


def mixture_distance(pixels: Tensor, background: Tensor, paint: Tensor) -> Tensor:
    """The distance of each pixel to the nearest mixture of paint and background."""
    mixture = torch.lerp(background, paint, paint_fraction(pixels, background, paint)[..., None])
    return (pixels - mixture).norm(dim=-1)


def core(region: Tensor) -> Tensor:
    """The pixels furthest from the edge, where the paint is pure: eroded twice, unless too little would remain."""
    for _ in range(2):
        smaller = erode(region)
        if smaller.sum() < MIN_AREA / 4 * region.numel():
            break
        region = smaller
    return region


def dilate(mask: Tensor, times: int = 1) -> Tensor:
    """A mask with the adjacent pixels added, `times` over."""
    for _ in range(times):
        mask = max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0
    return mask


def erode(mask: Tensor) -> Tensor:
    """A mask without the pixels at its edge."""
    return ~dilate(~mask)
