"""The layers that the text transformer, the autoencoder and the UNet share.

Feature maps are (B, C, H, W) in channels_last memory, so that a map and its (B, H*W, C) tokens are the same bytes.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    """Feature map (B, C, H, W) -> tokens (B, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens (B, H*W, C) -> feature map (B, C, H, W), with the height and width of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def repeat_batch_to(x: Tensor, other: Tensor) -> Tensor:
    """Repeat the batch x (B, ...) until it has as many rows as `other`: guidance has two texts for each image."""
    if len(other) % len(x):
        raise ValueError(f"a batch of {len(x)} cannot be repeated to {len(other)} rows, expected a multiple of it.")
    times = len(other) // len(x)
    return x if times == 1 else torch.cat([x] * times)  # x.repeat would leave channels_last memory


def readable_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v, line by line (Vaswani et al. 2017, eq. 1).

    q (B, heads, N, d); k, v (B, heads, M, d) -> output (B, heads, N, d) and the weights (B, heads, N, M).
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    weights = scores.softmax(-1)
    return weights @ v, weights


class Attention(nn.Module):
    """Multi-head attention of tokens x to a context, or to themselves.

    PyTorch's fused `scaled_dot_product_attention` computes the output. To see the attention weights, set `on_weights`
    to a function: `readable_attention` runs as well, and the function gets the weights (B, heads, N, M) of each call;
    the output does not change.
    """

    on_weights: Callable[[Tensor], None] | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        context_width: int | None = None,
        qkv_bias: bool = False,
        causal: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        context_width = width if context_width is None else context_width
        self.heads, self.causal, self.upcast = heads, causal, upcast
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.k = nn.Linear(context_width, width, bias=qkv_bias)
        self.v = nn.Linear(context_width, width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens x (B, N, width), context (B, M, context_width) -> (B, N, width)."""
        context = x if context is None else context
        q, k, v = (self._split(p) for p in (self.q(x), self.k(context), self.v(context)))
        if self.upcast:  # q k^T overflows float16 in SD 2.1
            q, k, v = q.float(), k.float(), v.float()
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        if self.on_weights is not None:
            self.on_weights(readable_attention(q, k, v, self.causal)[1])
        return self.out(y.transpose(1, 2).flatten(2).to(x.dtype))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)


class Conv2d(nn.Conv2d):
    """Convolution that converts its weights to channels_last memory on first use.

    Otherwise each call would convert them, which costs more than the convolution itself in the UNet's lower levels.
    Loading does not convert them: there weights are views of a mapped file, which take no time and no memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        self.to_channels_last()
        return super().forward(x)

    def to_channels_last(self) -> None:
        """Convert the weights, unless they are."""
        if not self.weight.is_contiguous(memory_format=torch.channels_last):
            with torch.inference_mode(False):  # weights made in inference mode could not be trained
                self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018) that stays exact in channels_last memory on the CPU.

    The CPU kernel computes the variance as E[x^2] - E[x]^2, which loses digits where a group's mean is much larger
    than its standard deviation. A constant does not change the norm, so each group's mean at the first position is
    subtracted.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            groups = x.detach()[:, :, :1, :1].unflatten(1, (self.num_groups, -1))
            x = x - groups.mean(2, keepdim=True).expand_as(groups).flatten(1, 2)
        return super().forward(x)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, twice; the time embedding, where there is one, is added in between."""

    def __init__(self, width_in: int, width_out: int, groups: int, eps: float, time_width: int | None = None) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, width_in, eps)
        self.conv1 = Conv2d(width_in, width_out, 3, padding=1)
        self.time = None if time_width is None else nn.Linear(time_width, width_out)
        self.norm2 = GroupNorm(groups, width_out, eps)
        self.conv2 = Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Identity() if width_in == width_out else Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, width_in, H, W), time (B, time_width) -> (B, width_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None and time is not None:
            h = h + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Norm and self-attention over all positions, added to the input; it takes no text."""

    def __init__(self, width: int, groups: int, eps: float, heads: int = 1) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps)
        self.attention = Attention(width, heads, qkv_bias=True)

    def forward(self, x: Tensor, text: None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + to_map(self.attention(to_tokens(self.norm(x))), like=x)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution.

    The UNet pads symmetrically. The official autoencoder and the first UNets of pixels pad right and below only; other
    padding shifts the image.
    """

    def __init__(self, width: int, pad_right_below: bool = False) -> None:
        super().__init__()
        self.pad_right_below = pad_right_below
        self.conv = Conv2d(width, width, 3, stride=2, padding=0 if pad_right_below else 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_right_below else x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or to `size` = (height, width) where downsampling rounded up."""
        doubled = torch.Size((2 * x.shape[2], 2 * x.shape[3]))
        if size in (None, doubled) and _is_faster_at_once(x, self.conv.weight):
            return _double_and_convolve(x, self.conv)
        return self.conv(F.interpolate(x, size=list(doubled if size is None else size), mode="nearest"))


def _is_faster_at_once(x: Tensor, weight: Tensor) -> bool:
    """Whether `_double_and_convolve` is worth its preparation, as measured in float32 on the CPU with oneDNN.

    On the meta device, where only operations are counted, the answer is that of the CPU.
    """
    trained = weight.requires_grad and torch.is_grad_enabled()
    measured = x.device.type in ("cpu", "meta") and x.dtype == weight.dtype == torch.float32
    large = x.shape[2] * x.shape[3] >= 1024
    return large and measured and not trained and torch.backends.mkldnn.is_available()


def _double_and_convolve(x: Tensor, conv: Conv2d) -> Tensor:
    """What `Upsample` computes, by a transposed convolution: 4/9 of the products, and the doubled map is never stored.

    Among three neighbours in the doubled map two are equal, so the convolution sees 2 x 2 values and the sums of the
    weights that meet in each. All four offsets of a pixel within its square together are one kernel of 4 x 4; `sums`
    says which of the three rows, or columns, of the kernel of 3 x 3 meet in each of its rows, or columns.
    """
    outputs, inputs = conv.weight.shape[:2]
    sums = conv.weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    kernel = torch.kron(sums, sums) @ conv.weight.permute(2, 3, 0, 1).reshape(9, -1)
    kernel = kernel.view(4, 4, outputs, inputs).permute(3, 2, 0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)
