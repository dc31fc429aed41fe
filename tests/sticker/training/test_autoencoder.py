"""The autoencoder: its losses, the normalisation of its latents, and training from an existing one."""

from dataclasses import replace

import pytest
import torch

from minisd.sticker.training import autoencoder
from minisd.sticker.training.autoencoder import (
    VAE_CONFIG,
    fold_statistics,
    new_vae,
    normalise,
    reconstruction_loss,
    thumbnail_loss,
)
from minisd.sticker.training.dataset import training_scenes
from minisd.sticker.training.diffusion import encode_scenes


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 pixels, a quarter of the work."""
    monkeypatch.setattr(autoencoder, "VAE_CONFIG", replace(VAE_CONFIG, sample_size=32))


def test_folding_the_statistics_changes_the_latents_and_nothing_else() -> None:
    vae = new_vae().eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    mean, std = torch.tensor([0.5, -2.0, 3.0, 0.0]), torch.tensor([2.0, 0.3, 1.0, 4.0])
    with torch.no_grad():
        before = vae.encode(pixels)
        decoded = vae.decode(before.mean)
        fold_statistics(vae, mean, std)
        after = vae.encode(pixels)
        scale = (std * vae.config.scaling_factor)[:, None, None]
        assert torch.allclose(after.mean, (before.mean - mean[:, None, None]) / scale, atol=1e-4)
        assert torch.allclose(after.std * scale, before.std, rtol=1e-4, atol=1e-6)
        assert torch.allclose(vae.decode(after.mean), decoded, atol=1e-5)


def test_latents_are_normalised() -> None:
    vae = new_vae().eval()
    normalise(vae, scenes=200)
    latents = encode_scenes(vae, training_scenes(100, seed=3))  # drawn with other probabilities
    assert latents.mean().abs() < 0.3
    assert 0.7 < latents.std() < 1.3


def test_the_thumbnail_is_the_image_in_three_channels() -> None:
    target = torch.rand(2, 3, 16, 16)
    small = torch.nn.functional.avg_pool2d(target, 4)
    assert thumbnail_loss(torch.cat([small, torch.randn(2, 1, 4, 4)], 1), target) < 1e-6
    assert thumbnail_loss(torch.cat([small + 0.5, torch.randn(2, 1, 4, 4)], 1), target) == pytest.approx(0.5, abs=1e-5)


def test_a_new_autoencoder_is_almost_deterministic() -> None:
    with torch.no_grad():
        gauss = new_vae().encode(torch.zeros(1, 3, 16, 16))
    assert gauss.std.max() < 0.06


def test_the_reconstruction_loss_weighs_objects_more_than_the_background() -> None:
    target = -torch.ones(1, 3, 32, 32)
    target[:, :, 8:16, 8:16] = 1
    on_object, on_background = target.clone(), target.clone()
    on_object[:, :, 10, 10] -= 0.5
    on_background[:, :, 28, 28] += 0.5
    assert reconstruction_loss(target, target) == 0
    assert reconstruction_loss(on_object, target) > 1.5 * reconstruction_loss(on_background, target)
