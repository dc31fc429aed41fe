"""The shared layers against the reference's, block by block, and the numbers of the layers themselves."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.small import copy_weights, randomise

from minisd.models.layers import (
    Attention,
    Conv2d,
    Downsample,
    ResBlock,
    Upsample,
    readable_attention,
    repeat_batch_to,
    to_map,
    to_tokens,
)
from weights_loader.names import diffusers as names

pytest.importorskip("diffusers")
from diffusers.models.attention_processor import Attention as OracleAttention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

BLOCK = {"rtol": 0, "atol": 1e-5}
# the scales of its input and of its weights at which a block is tested; the low ones show a norm's epsilon
SCALES = [(1.0, 1.0), (1e-3, 1.0), (1e-3, 1e-2)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "gain"), SCALES)
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize(("width_in", "width_out", "time_width"), [(16, 16, 24), (16, 32, 24), (32, 16, None)])
def test_residual_block(
    width_in: int, width_out: int, time_width: int | None, eps: float, scale: float, gain: float
) -> None:
    oracle = ResnetBlock2D(in_channels=width_in, out_channels=width_out, temb_channels=time_width, groups=8, eps=eps)
    randomise(oracle, 5, gain)
    ours = copy_weights(lambda: ResBlock(width_in, width_out, 8, eps, time_width), names.RESNET, oracle)
    x = noise(2, width_in, 11, 7) * scale
    time = None if time_width is None else noise(2, time_width, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, time), oracle(x, time), **BLOCK)


def test_residual_blocks_parity_sees_a_wrong_epsilon() -> None:
    """The tolerance of the test above does not accept the other epsilon, in either norm."""
    block = randomise(ResBlock(16, 16, 8, 1e-5, 24), 5, gain=1e-2)
    x, time = noise(2, 16, 11, 7) * 1e-3, noise(2, 24, seed=1)
    with torch.no_grad():
        right = block(x, time)
        for norm in (block.norm1, block.norm2):
            norm.eps = 1e-6
            assert (block(x, time) - right).abs().max() > 1e-4
            norm.eps = 1e-5


@pytest.mark.parametrize("context_width", [None, 24])
@pytest.mark.parametrize(("heads", "bias"), [(1, True), (4, False), (8, False)])
def test_attention(heads: int, bias: bool, context_width: int | None) -> None:
    oracle = randomise(
        OracleAttention(query_dim=32, cross_attention_dim=context_width, heads=heads, dim_head=32 // heads, bias=bias),
        2,
    )
    ours = copy_weights(lambda: Attention(32, heads, context_width, qkv_bias=bias), names.ATTENTION, oracle)
    x, context = noise(2, 35, 32), None if context_width is None else noise(2, 77, 24, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, context), oracle(x, encoder_hidden_states=context), **BLOCK)


@pytest.mark.parametrize(("size", "padding"), [((12, 10), 1), ((15, 11), 1), ((12, 10), 0), ((15, 11), 0)])
def test_downsample(size: tuple[int, int], padding: int) -> None:
    oracle = randomise(Downsample2D(16, use_conv=True, padding=padding, name="op"), 3)
    ours = copy_weights(lambda: Downsample(16, pad_right_below=padding == 0), {"conv": "conv"}, oracle)
    x = noise(2, 16, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), oracle(x), **BLOCK)


@pytest.mark.parametrize("size", [None, (15, 11)])
def test_upsample(size: tuple[int, int] | None) -> None:
    oracle = randomise(Upsample2D(16, use_conv=True), 4)
    ours = copy_weights(lambda: Upsample(16), {"conv": "conv"}, oracle)
    x = noise(2, 16, 8, 6)
    with torch.no_grad():
        got = ours(x, None if size is None else torch.Size(size))
        torch.testing.assert_close(got, oracle(x, output_size=size), **BLOCK)
    assert tuple(got.shape[2:]) == (size or (16, 12))


@pytest.mark.parametrize(("size", "at_once"), [((32, 32), True), ((25, 48), True), ((31, 33), False)])
@pytest.mark.parametrize("batch", [1, 3])
def test_upsample_of_large_maps(
    size: tuple[int, int], at_once: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large map is doubled and convolved at once, where nothing is trained; the result and its gradient are equal."""
    calls: list[object] = []
    transposed = F.conv_transpose2d
    monkeypatch.setattr(F, "conv_transpose2d", lambda *given, **how: calls.append(0) or transposed(*given, **how))
    oracle = randomise(Upsample2D(8, use_conv=True), 4)
    ours = copy_weights(lambda: Upsample(8), {"conv": "conv"}, oracle)
    x = noise(batch, 8, *size).requires_grad_()
    (trained,) = torch.autograd.grad(ours(x).square().sum(), x)
    assert not calls
    ours.requires_grad_(False)
    (fast,) = torch.autograd.grad((got := ours(x)).square().sum(), x)
    assert bool(calls) == (at_once and torch.backends.mkldnn.is_available())
    torch.testing.assert_close(got, oracle(x), **BLOCK)
    torch.testing.assert_close(fast, trained, rtol=1e-5, atol=1e-5 * float(trained.abs().max()))


def test_padding_right_below_is_not_symmetric() -> None:
    """A dot in the first row and column stays there: symmetric padding would shift it by a pixel."""
    down = Downsample(1, pad_right_below=True)
    with torch.no_grad():
        down.conv.weight.copy_(torch.eye(3)[0][:, None] * torch.eye(3)[0])  # takes the upper left corner of its window
        down.conv.bias.zero_()
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1
    assert torch.equal(down(x), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gain", [1.0, 8.0])
def test_readable_attention_is_the_fused_one(causal: bool, gain: float) -> None:
    q, k, v = (noise(2, 3, 20, 8, seed=seed) * gain for seed in range(3))
    readable, weights = readable_attention(q, k, v, causal)
    torch.testing.assert_close(
        readable, F.scaled_dot_product_attention(q, k, v, is_causal=causal), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 20), rtol=0, atol=1e-5)
    assert bool(weights.triu(1).any()) is not causal


def test_scores_are_divided_by_the_square_root_of_the_head_width() -> None:
    q = torch.zeros(1, 1, 1, 16)
    k = torch.zeros(1, 1, 2, 16)
    q[..., 0], k[..., 0, 0] = 4.0, math.log(3)  # scores log 3 and 0: weights 3/4 and 1/4
    _, weights = readable_attention(q, k, k)
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize(("causal", "context_width"), [(False, None), (True, None), (False, 24)])
def test_watching_changes_nothing(causal: bool, context_width: int | None) -> None:
    attention = randomise(Attention(32, 4, context_width, causal=causal), 1)
    x, context = noise(2, 20, 32), None if context_width is None else noise(2, 7, 24, seed=1)
    with torch.no_grad():
        fused = attention(x, context)
        seen: list[torch.Tensor] = []
        attention.on_weights = seen.append
        torch.testing.assert_close(attention(x, context), fused, **BLOCK)
        attention.on_weights = None
        assert torch.equal(attention(x, context), fused)
    (weights,) = seen
    assert weights.shape == (2, 4, 20, 20 if context_width is None else 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20), rtol=0, atol=1e-5)


def test_causal_attention_does_not_look_ahead() -> None:
    attention = randomise(Attention(32, 4, causal=True), 1)
    x = noise(1, 10, 32)
    changed = x.clone()
    changed[:, 6:] += 1
    with torch.no_grad():
        before, after = attention(x), attention(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().min() > 0


def test_upcast_attention_survives_half_precision() -> None:
    """q k^T beyond 65504 overflows float16; in float32 it does not, and the result comes back in half."""
    attention = Attention(32, 1, upcast=True).half()
    plain = Attention(32, 1).half()
    with torch.no_grad():
        for each in (attention, plain):
            for linear in (each.q, each.k, each.v, each.out):
                linear.weight.copy_(torch.eye(32))
            each.out.bias.zero_()
        x = torch.zeros(1, 2, 32, dtype=torch.float16)
        x[0, 0], x[0, 1] = 250.0, -250.0
        got = attention(x)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, x)


def test_tokens_and_maps_are_inverse() -> None:
    x = noise(2, 3, 5, 4)
    assert to_tokens(x).shape == (2, 20, 3)
    assert torch.equal(to_tokens(x)[1, 7], x[1, :, 1, 3])
    assert torch.equal(to_map(to_tokens(x), like=x), x)


def test_weights_turn_to_channels_last_when_first_used_and_stay_what_they_are() -> None:
    conv = Conv2d(6, 4, 3, padding=1)
    weight = conv.weight.detach().clone()
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = F.conv2d(x, weight, conv.bias, padding=1)
        first, again = conv(x), conv(x)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv.state_dict()["weight"], weight)
    assert torch.allclose(first, expected, atol=1e-6)
    assert torch.equal(first, again)
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_a_first_use_in_inference_mode_leaves_weights_that_can_be_trained() -> None:
    conv = Conv2d(2, 2, 3, padding=1)
    with torch.inference_mode():
        conv(torch.randn(1, 2, 4, 4))
    conv(torch.randn(1, 2, 4, 4)).sum().backward()
    assert conv.weight.grad is not None


def test_repeated_rows_keep_their_memory_format() -> None:
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    rows = repeat_batch_to(x, torch.zeros(4, 1))
    assert torch.equal(rows, torch.cat([x, x]))
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert repeat_batch_to(x, torch.zeros(2, 1)) is x
    with pytest.raises(ValueError, match="multiple"):
        repeat_batch_to(x, torch.zeros(3, 1))
