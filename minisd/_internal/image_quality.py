"""How similar two images are: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.errors import InputError


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images (B, 3, H, W) in [-1, 1]: -> (B,), at most 100, for equal images."""
    _check_shapes(first, second)
    error = ((first - second) / 2).square().mean((1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of images (B, C, H, W) in [-1, 1]: -> (B,), 1 for equal images.

    Mean over channels and over all windows of 11 x 11 pixels inside the image, weighted by a Gaussian of standard
    deviation 1.5; K1 = 0.01, K2 = 0.03 (Wang et al. 2004, equation 13).
    """
    _check_shapes(first, second)
    if min(first.shape[2:]) < 11:
        raise InputError(f"ssim got images of shape {tuple(first.shape)}; give at least 11 x 11 pixels.")
    gauss = torch.exp(-((torch.arange(11, dtype=first.dtype, device=first.device) - 5) ** 2) / (2 * 1.5**2))
    window = (gauss[:, None] * gauss / gauss.sum() ** 2)[None, None]
    x, y = (images.flatten(0, 1)[:, None] / 2 + 0.5 for images in (first, second))  # the formula is for [0, 1]
    mean_x, mean_y, xx, yy, xy = (F.conv2d(each, window) for each in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).view(first.shape[:2]).mean(1)


def _check_shapes(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise InputError(f"images of shapes {shapes} cannot be compared; give two batches (B, 3, H, W) of equal shape.")
