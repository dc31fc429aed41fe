"""KL autoencoder: images to latents, eight times smaller along each side, and back."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from minisd.configs import VAEConfig
from minisd.models.layers import AttentionBlock, Conv2d, Downsample, GroupNorm, Upsample
from minisd.models.stripes import StripedResBlock, normed_convolution

NORM_EPS = 1e-6  # of every norm in the autoencoder; the UNet's residual blocks use 1e-5


class Gaussian:
    """Diagonal normal distribution over latents: `mean` and `std`, each (B, C, h, w)."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation."""
        return (self.logvar / 2).exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise; the noise comes from the CPU `generator`, whatever device the mean is on."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """The most likely latents: the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence to the standard normal, mean over all latents (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).mean()


class VAEMiddle(nn.Module):
    """The bottom of encoder and decoder: residual block, attention, residual block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(StripedResBlock(width, width, groups, NORM_EPS) for _ in range(2))
        self.attention = AttentionBlock(width, groups, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.resnets[1](self.attention(self.resnets[0](x)))


class VAELevel(nn.Module):
    """Residual blocks at one resolution, then up- or downsampling."""

    def __init__(self, width_in: int, width_out: int, blocks: int, groups: int, resample: nn.Module | None) -> None:
        super().__init__()
        widths = [width_in] + [width_out] * blocks
        self.resnets = nn.ModuleList(StripedResBlock(a, b, groups, NORM_EPS) for a, b in pairwise(widths))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, width_out, H', W')."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.resample is None else self.resample(x)


class Encoder(nn.Module):
    """Pixels to the moments of a Gaussian over latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        last = len(channels) - 1
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            VAELevel(
                channels[max(level - 1, 0)],
                width,
                config.layers_per_block,
                groups,
                Downsample(width, pad_right_below=True) if level < last else None,
            )
            for level, width in enumerate(channels)
        )
        self.middle = VAEMiddle(channels[-1], groups)
        self.norm_out = GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2 * latent_channels, h, w)."""
        h = self.conv_in(pixels)
        for level in self.down:
            h = level(h)
        h = self.middle(h)
        return normed_convolution(self.norm_out, self.conv_out, h)


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.channels[::-1], config.norm_groups
        last = len(channels) - 1
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.middle = VAEMiddle(channels[0], groups)
        self.up = nn.ModuleList(
            VAELevel(
                channels[max(level - 1, 0)],
                width,
                config.layers_per_block + 1,
                groups,
                Upsample(width) if level < last else None,
            )
            for level, width in enumerate(channels)
        )
        self.norm_out = GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = Conv2d(channels[-1], config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, 3, H, W)."""
        h = self.middle(self.conv_in(latents))
        for level in self.up:
            h = level(h)
        return normed_convolution(self.norm_out, self.conv_out, h)


class VAE(nn.Module):
    """The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1).

    `encode` and `decode` are about the checkpoint's raw latents. The UNet's latents have about unit variance: `scaled`
    and `raw` convert them, by config.scaling_factor and, where a checkpoint has them, the statistics of each channel.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_moments = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.from_latents = Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Gaussian:
        """Pixels (B, 3, H, W) in [-1, 1] -> Gaussian over latents (B, C, H/8, W/8)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        moments = self.to_moments(self.encoder(pixels))
        return Gaussian(moments.contiguous())  # torch.randn_like(latents) draws in the order of memory

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, 8h, 8w), about [-1, 1], not clamped."""
        latents = latents.contiguous(memory_format=torch.channels_last)
        return self.decoder(self.from_latents(latents))

    def scaled(self, raw: Tensor) -> Tensor:
        """Raw latents z (B, C, h, w) -> those of about unit variance, scaling_factor (z - mean) / std."""
        factor = self.config.scaling_factor
        if self.config.latents_mean is None:
            return raw * factor
        mean, std = self._statistics(raw)
        return (raw - mean) * factor / std

    def raw(self, scaled: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        factor = self.config.scaling_factor
        if self.config.latents_mean is None:
            return scaled / factor
        mean, std = self._statistics(scaled)
        return scaled * std / factor + mean

    def _statistics(self, like: Tensor) -> list[Tensor]:
        """Mean and deviation of each channel of the raw latents, (C, 1, 1) each."""
        return [like.new_tensor(each)[:, None, None] for each in (self.config.latents_mean, self.config.latents_std)]
