"""UNet with cross-attention: noisy latents, time and text in; the predicted noise (or v, or x0) out.

Without text (`context_width` 0) it is the UNet of the first diffusion models, which work on pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import UNetConfig
from minisd.errors import InputError
from minisd.models.layers import (
    Attention,
    AttentionBlock,
    Conv2d,
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    repeat_batch_to,
    to_map,
    to_tokens,
)

TRANSFORMER_NORM_EPS = 1e-6


def sinusoids(values: Tensor, width: int, original_ddpm: bool = False) -> Tensor:
    """Numbers (N,) -> (N, width), float32: cosines, then sines, of width/2 frequencies from 1 to (almost) 1/10000.

    original_ddpm: sines first, and the last frequency is 1/10000.
    """
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(exponent / (half - original_ddpm))
    waves = [angles.cos(), angles.sin()]
    return torch.cat(waves[::-1] if original_ddpm else waves, dim=1)


class MLP(nn.Module):
    """Linear, SiLU, Linear: embeds the timestep, and the pooled vector of SDXL."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width_in, width_out)
        self.linear2 = nn.Linear(width_out, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in) -> (B, width_out)."""
        return self.linear2(F.silu(self.linear1(x)))


class GEGLU(nn.Module):
    """Feed-forward layer whose hidden units are gated (Shazeer 2020): values * gelu(gates)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 8 * width)  # values, then gates
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        values, gates = self.expand(x).chunk(2, dim=-1)
        return self.contract(values * F.gelu(gates))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each after a norm and added to its input."""

    def __init__(self, config: UNetConfig, width: int, heads: int, only_cross_attention: bool) -> None:
        super().__init__()
        text, upcast = config.context_width, config.upcast_attention
        self.norm1 = nn.LayerNorm(width)
        self.attention1 = Attention(width, heads, text if only_cross_attention else None, upcast=upcast)
        self.norm2 = nn.LayerNorm(width)
        self.attention2 = Attention(width, heads, text, upcast=upcast)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = GEGLU(width)
        self.only_cross_attention = only_cross_attention

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Tokens (B, N, width), text states (B, L, context_width) -> (B, N, width)."""
        if self.only_cross_attention:
            x = repeat_batch_to(x, text)
            x = x + self.attention1(self.norm1(x), text)
        else:
            x = x + self.attention1(self.norm1(x))
            x = repeat_batch_to(x, text)
        x = x + self.attention2(self.norm2(x), text)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, with a projection before and after."""

    def __init__(
        self, config: UNetConfig, width: int, heads: int, depth: int, only_cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.linear = config.linear_projection
        self.norm = GroupNorm(config.norm_groups, width, TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(width, width) if self.linear else Conv2d(width, width, 1)
        self.blocks = nn.ModuleList(TransformerBlock(config, width, heads, only_cross_attention) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if self.linear else Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Feature map (B, width, H, W), text states (B, L, context_width) -> (B, width, H, W)."""
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for block in self.blocks:
            h = block(h, text)
        h = to_map(self.proj_out(h), like=x) if self.linear else self.proj_out(to_map(h, like=x))
        return repeat_batch_to(x, h) + h


def attention_after_resnet(config: UNetConfig, level: int, depth: int, only_cross_attention: bool = False) -> nn.Module:
    """The attention after a residual block: transformers that read the text; self-attention in a model without text."""
    width, heads = config.channels[level], config.heads[level]
    if config.context_width == 0:
        return AttentionBlock(width, config.norm_groups, config.norm_eps, heads)
    return SpatialTransformer(config, width, heads, depth, only_cross_attention)


class UNetLevel(nn.Module):
    """One resolution: residual blocks, a transformer after each (or none), then up- or downsampling."""

    def __init__(
        self,
        config: UNetConfig,
        level: int,
        widths_in: list[int],
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        width, depth = config.channels[level], config.depths[level]
        self.resnets = nn.ModuleList(
            ResBlock(w, width, config.norm_groups, config.norm_eps, config.time_width) for w in widths_in
        )
        self.transformers = nn.ModuleList(
            attention_after_resnet(config, level, depth, config.only_cross_attention[level])
            for _ in range(len(widths_in) if depth else 0)
        )
        self.resample = resample

    def block(self, i: int, x: Tensor, time: Tensor, text: Tensor | None) -> Tensor:
        """The i-th residual block and its transformer, where the level has transformers."""
        x = self.resnets[i](x, time)
        return self.transformers[i](x, text) if self.transformers else x


class UNetMiddle(nn.Module):
    """The bottom of the UNet: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.channels[-1]
        self.resnets = nn.ModuleList(
            ResBlock(width, width, config.norm_groups, config.norm_eps, config.time_width) for _ in range(2)
        )
        self.transformer = attention_after_resnet(config, -1, config.middle_depth)

    def forward(self, x: Tensor, time: Tensor, text: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x, time)
        return self.resnets[1](self.transformer(x, text), time)


class UNet(nn.Module):
    """The denoiser of latent diffusion (Rombach et al. 2022, section 3.2)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, layers, last = config.channels, config.layers_per_block, len(config.channels) - 1

        self.time = MLP(channels[0], config.time_width)
        if config.guidance_width is not None:
            self.guidance = nn.Linear(config.guidance_width, channels[0], bias=False)
        if config.class_count is not None:
            self.class_embedding = nn.Embedding(config.class_count, config.time_width)
        if config.pooled_width is not None:
            self.pooled = MLP(config.pooled_width, config.time_width)

        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, width in enumerate(channels):
            widths_in = [channels[max(level - 1, 0)]] + [width] * (layers - 1)
            halve = Downsample(width, pad_right_below=config.original_ddpm) if level < last else None
            self.down.append(UNetLevel(config, level, widths_in, halve))
        self.middle = UNetMiddle(config)
        self.up = nn.ModuleList()
        skips = [channels[0]]  # widths of the feature maps that the way down keeps for the way up
        for level, width in enumerate(channels):
            skips += [width] * (layers + (level < last))
        below = channels[-1]
        for level in reversed(range(len(channels))):
            width = channels[level]
            widths_in = [w + skips.pop() for w in [below] + [width] * layers]
            self.up.append(UNetLevel(config, level, widths_in, Upsample(width) if level > 0 else None))
            below = width
        self.norm_out = GroupNorm(config.norm_groups, channels[0], config.norm_eps)
        self.conv_out = Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        latents: Tensor,
        t: Tensor | float,
        text: Tensor | None = None,
        noise_level: Tensor | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | float | None = None,
    ) -> Tensor:
        """Latents (B, in_channels, h, w), timesteps () or (B,), text states (B, L, context_width) -> (B, out, h, w).

        text may have twice B rows, for guidance, and then one timestep: the latents are repeated at the first
        cross-attention, and what comes before is computed once. text is None only where the config has no text;
        noise_level (B,), int64, is for upscalers; pooled (B, pooled_width) is for SDXL; guidance, a scale () or (B,),
        is for a UNet that predicts what guidance with this scale would give (Meng et al. 2023).
        """
        # Time: one vector for all images; one for each row where SDXL's pooled vectors differ.
        time = self.embed_time(t, latents, noise_level, pooled, guidance)
        x = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        if len(time) > 1:
            x = repeat_batch_to(x, time)

        # Down: residual blocks and transformers at ever lower resolution; the up part reads every feature map again.
        skips = [x]
        for level in self.down:
            for i in range(len(level.resnets)):
                x = level.block(i, x, time, text)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)

        # Middle: the lowest resolution.
        x = self.middle(x, time, text)

        # Up: each block reads the last feature map of the down part that is not used yet.
        for level in self.up:
            for i in range(len(level.resnets)):
                skip = repeat_batch_to(skips.pop(), x)
                x = level.block(i, torch.cat([x, skip], dim=1), time, text)
            if level.resample is not None:
                x = level.resample(x, size=skips[-1].shape[2:])

        return self.conv_out(F.silu(self.norm_out(x)))

    def embed_time(
        self,
        t: Tensor | float,
        latents: Tensor,
        noise_level: Tensor | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | float | None = None,
    ) -> Tensor:
        """The vector that every residual block reads: (B, time_width), or (1, time_width) for all images."""
        t = torch.as_tensor(t, device=latents.device).reshape(-1)
        waves = sinusoids(t, self.config.channels[0], self.config.original_ddpm).to(latents.dtype)
        if (guidance is None) != (self.config.guidance_width is None):
            need = "reads no guidance scale; remove it" if guidance is not None else "reads the guidance scale; pass it"
            raise InputError(f"this UNet {need}.")
        if guidance is not None:
            scale = torch.as_tensor(guidance, device=latents.device).reshape(-1)
            width = self.guidance.in_features
            waves = waves + self.guidance(sinusoids(1000 * (scale - 1), width, original_ddpm=True).to(latents.dtype))
        time = self.time(waves)
        if noise_level is not None:
            time = time + self.class_embedding(noise_level)
        if pooled is not None:
            time = time + self.pooled(pooled)
        return time
