"""Residual blocks in stripes of rows against the whole map, and the autoencoder's decoder against the oracle's."""

import pytest
import torch
from torch import Tensor

import minisd.models.stripes as stripes
from minisd.models.layers import Conv2d, GroupNorm, ResBlock
from minisd.models.stripes import StripedResBlock, normed_convolution


@pytest.fixture
def small_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes of four rows, for all maps."""
    monkeypatch.setattr(stripes, "ROWS", 4)
    monkeypatch.setattr(stripes, "LARGE", 0)


def random_map(channels: int, height: int, offset: float, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(batch, channels, height, 5, generator=generator) + offset
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("small_stripes")
@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 9, 14])
@pytest.mark.parametrize(("width_in", "width_out", "offset"), [(8, 8, 0.0), (16, 8, 0.5), (8, 16, 100.0)])
def test_a_block_in_stripes_computes_the_block(height: int, width_in: int, width_out: int, offset: float) -> None:
    torch.manual_seed(0)
    block = StripedResBlock(width_in, width_out, 4, 1e-6)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = random_map(width_in, height, offset)
    before = x.clone()
    exact = ResBlock.forward(block.double(), x.double())
    with torch.no_grad():
        got = block.float()(x)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-5 * max(1.0, offset))


@pytest.mark.usefixtures("small_stripes")
def test_a_normed_convolution_in_stripes_in_bfloat16() -> None:
    torch.manual_seed(0)
    norm, conv = GroupNorm(4, 8, 1e-6), Conv2d(8, 3, 3, padding=1)
    x = random_map(8, 10, 0.3)
    with torch.no_grad():
        exact = normed_convolution(norm, conv, x)
        got = normed_convolution(norm.bfloat16(), conv.bfloat16(), x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, rtol=0.02, atol=0.02)


def test_only_large_maps_without_gradients_are_computed_in_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    convolve = stripes._convolve
    monkeypatch.setattr(stripes, "_convolve", lambda *given, **how: calls.append(0) or convolve(*given, **how))
    block, x = StripedResBlock(8, 8, 4, 1e-6), random_map(8, 6, 0.0)
    monkeypatch.setattr(stripes, "LARGE", x[0].numel())
    block(x)
    assert not calls  # with gradients
    with torch.no_grad():
        block(x[:, :, :5])
        assert not calls  # smaller
        block(x)
    assert len(calls) == 2
