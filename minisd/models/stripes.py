"""A residual block of the autoencoder in stripes of rows: the same result with half the memory.

Norm and SiLU of a whole map are as large as the map itself. Here they exist for a few rows at a time, and the output
of the block replaces the map between its convolutions. The norm's statistics are those of the whole map.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.models.layers import Conv2d, GroupNorm, ResBlock

ROWS = 16  # of a stripe
LARGE = 2**24  # numbers in a map (C, H, W): below it, the memory is not worth the calls


class StripedResBlock(ResBlock):
    """A residual block which, without time, computes a large map in stripes where no gradients are needed."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, width_in, H, W) -> (B, width_out, H, W)."""
        if time is not None or not _is_large(x):
            return super().forward(x, time)
        h = _convolve(self.norm1, self.conv1, x)
        return _convolve(self.norm2, self.conv2, h, out=h, residual=lambda rows: self.skip(x[:, :, rows]))


def normed_convolution(norm: GroupNorm, conv: Conv2d, x: Tensor) -> Tensor:
    """conv(silu(norm(x))) for a kernel of 3 x 3, of a large map in stripes: (B, C, H, W) -> (B, C', H, W)."""
    return _convolve(norm, conv, x) if _is_large(x) else conv(F.silu(norm(x)))


def _is_large(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled() and x[0].numel() >= LARGE


def _convolve(
    norm: GroupNorm,
    conv: Conv2d,
    x: Tensor,
    out: Tensor | None = None,
    residual: Callable[[slice], Tensor] | None = None,
) -> Tensor:
    """conv(silu(norm(x))) in stripes, plus the residual for a slice of rows.

    out: the map to write to, which may be x itself: a row is written after the stripe below it was read.
    """
    conv.to_channels_last()
    mean, scale = _mean_and_scale(norm, x)
    if out is None:
        shape = (len(x), conv.out_channels, *x.shape[2:])
        out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    height, zeros = x.shape[2], torch.zeros_like(x[:, :, :1])
    kept = zeros  # the padding above; then the last two rows of the stripe before
    for top in range(0, height, ROWS):
        rows = (x[:, :, top : top + ROWS] - mean).mul_(scale).add_(norm.bias[:, None, None])
        stripe = [kept, F.silu(rows, inplace=True).to(x.dtype)]
        window = torch.cat(stripe if top + ROWS < height else [*stripe, zeros], dim=2)
        kept = window[:, :, -2:]
        y = F.conv2d(window, conv.weight, conv.bias, padding=(0, 1))
        first = max(top - 1, 0)
        done = slice(first, first + y.shape[2])
        out[:, :, done] = y if residual is None else y.add_(residual(done))
    return out


def _mean_and_scale(norm: GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the norm subtracts from each channel of a map and multiplies it with, (B, C, 1, 1) each, in float32.

    The variance is that of the differences from one value of the group, see GroupNorm.
    """
    groups = x[:, :, :1, :1].unflatten(1, (norm.num_groups, -1)).float()
    start = groups.mean(2, keepdim=True).expand_as(groups).flatten(1, 2)
    sums = torch.zeros(2, *x.shape[:2], dtype=torch.float64)
    for top in range(0, x.shape[2], ROWS):
        moved = (x[:, :, top : top + ROWS] - start).permute(0, 2, 3, 1).flatten(1, 2)
        sums += torch.stack([moved.sum(1), moved.square_().sum(1)])
    first, second = sums.unflatten(2, (norm.num_groups, -1)).mean(3) / (x.shape[2] * x.shape[3])
    scale = (second - first.square() + norm.eps).rsqrt().float()
    per_group = x.shape[1] // norm.num_groups
    mean, scale = (each.repeat_interleave(per_group, 1)[:, :, None, None] for each in (first.float(), scale))
    return start + mean, scale * norm.weight[:, None, None]
