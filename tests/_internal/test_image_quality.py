"""PSNR and SSIM, against their formulas."""

import math

import numpy as np
import pytest
import torch

from minisd._internal.image_quality import psnr, ssim
from minisd.errors import InputError
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_by_hand() -> None:
    black, white = -torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    gray = black.clone()
    gray[1] += 0.2  # a tenth of the range
    assert psnr(black, white).tolist() == [0, 0]
    assert psnr(black, gray).tolist() == pytest.approx([100, 20], abs=1e-4)
    with pytest.raises(InputError, match="cannot be compared"):
        psnr(black, white[:1])


def test_ssim_of_one_window_by_hand() -> None:
    x, y = noise(1, 1, 11, 11).double(), noise(1, 1, 11, 11, seed=1).double()
    a, b = (each[0, 0].numpy() / 2 + 0.5 for each in (x, y))  # in [0, 1], where the paper's L is 1
    weight = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    weight /= weight.sum()
    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
    var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
    cov = (weight * (a - mean_a) * (b - mean_b)).sum()
    top = (2 * mean_a * mean_b + 0.0001) * (2 * cov + 0.0009)
    expected = top / ((mean_a**2 + mean_b**2 + 0.0001) * (var_a + var_b + 0.0009))
    assert float(ssim(x, y)[0]) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_the_mean_over_windows_and_channels() -> None:
    x, y = noise(2, 3, 12, 11), noise(2, 3, 12, 11, seed=1)
    parts = [ssim(x[:, c : c + 1, k : k + 11], y[:, c : c + 1, k : k + 11]) for c in range(3) for k in range(2)]
    assert torch.allclose(ssim(x, y), torch.stack(parts).mean(0), atol=1e-6)
    assert torch.allclose(ssim(x, y), ssim(y, x))
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    with pytest.raises(InputError, match="11 x 11"):
        ssim(x[..., :10], y[..., :10])


def test_ssim_distinguishes_what_psnr_does_not() -> None:
    """The paper's figure 2: at the same error, a brighter image is more similar than a noisy one."""
    scene = Scene((Object("star", "red", "large", 0.5, 0.5, 0.19),), "gray")
    image = render([scene])
    brighter, noisy = image + 0.1, image + 0.1 * noise(*image.shape).sign()
    assert float(psnr(image, brighter)) == pytest.approx(float(psnr(image, noisy)), abs=1e-3)
    assert float(ssim(image, brighter)) > 0.95 > 0.8 > float(ssim(image, noisy))
