"""Reconstructions by autoencoders that lose nothing, or almost everything."""

import pytest
from support.painter import Lossless

from minisd.sticker.evaluation.judging import Rate
from minisd.sticker.evaluation.reconstruction import measure_reconstruction


def test_reconstructions() -> None:
    same = measure_reconstruction(Lossless(), 6, seed=0)  # type: ignore[arg-type]
    assert (same.mean_psnr, same.worst_percent_psnr, same.worst_psnr) == pytest.approx((100, 100, 100))
    assert same.mean_ssim == pytest.approx(1)
    assert same.exact == Rate(6, 6)
    faded = measure_reconstruction(Lossless(gain=0.1), 6, seed=0)  # type: ignore[arg-type]
    assert faded.exact == Rate(0, 6)
    assert faded.worst_psnr <= faded.worst_percent_psnr <= faded.mean_psnr < 20
    assert faded.mean_ssim < 0.9
