"""The decoder of a tiny autoencoder: latents to an approximate image, with a small part of the VAE's operations.

The networks of TAESD (Bohan 2023, https://github.com/madebyollin/taesd) have this shape.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import PreviewDecoderConfig
from minisd.models.layers import Conv2d, Upsample

LIMIT = 3.0  # latents have about unit variance; values far outside would otherwise reach all pixels around them


class PreviewBlock(nn.Module):
    """Residual block: three convolutions with ReLU, and one more after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(x + self.conv3(h))


class PreviewLevel(nn.Module):
    """Residual blocks at one resolution, then upsampling."""

    def __init__(self, width: int, blocks: int, upsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PreviewBlock(width) for _ in range(blocks))
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or the same size without upsampling."""
        for block in self.blocks:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class PreviewDecoder(nn.Module):
    """Latents to pixels, approximately.

    It reads the UNet's latents, of about unit variance, as they are: no scaling_factor is applied.
    """

    def __init__(self, config: PreviewDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, blocks = config.width, config.blocks_per_level[::-1]
        last = len(blocks) - 1
        self.conv_in = Conv2d(config.latent_channels, width, 3, padding=1)
        self.levels = nn.ModuleList(
            PreviewLevel(width, count, Upsample(width, bias=False) if level < last else None)
            for level, count in enumerate(blocks)
        )
        self.conv_out = Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents of about unit variance (B, C, h, w) -> pixels (B, 3, H, W), about [-1, 1], not clamped."""
        latents = latents.contiguous(memory_format=torch.channels_last)
        h = F.relu(self.conv_in(LIMIT * torch.tanh(latents / LIMIT)))
        for level in self.levels:
            h = level(h)
        return 2 * self.conv_out(h) - 1
