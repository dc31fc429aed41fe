"""The larger autoencoder: it begins as the smaller one, and learns from what a UNet predicts."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from support.small import randomise

from minisd.sticker.training.autoencoder import VAE_CONFIG, new_vae
from minisd.sticker.training.dataset import new_tokenizer, training_scenes
from minisd.sticker.training.diffusion import SCHEDULE
from minisd.sticker.training.grown_vae import (
    TIMESTEPS,
    decisive_loss,
    grown_config,
    grown_vae,
    predicted_latents,
)


def test_the_larger_one_has_the_official_factor() -> None:
    config = grown_config(VAE_CONFIG)
    assert config.sample_size == 128
    assert 2 ** (len(config.channels) - 1) == 8
    assert config.channels[1:] == VAE_CONFIG.channels


def test_it_begins_with_the_latents_of_the_smaller_one() -> None:
    """For images whose pixels are equal in squares of two by two; its border is zero, too."""
    small = randomise(new_vae(), seed=5).eval()
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = small.encode(pixels)
        got = grown_vae(small).encode(F.interpolate(pixels, scale_factor=2.0))
    assert (got.mean - expected.mean).abs().max() <= 1e-5 * expected.mean.abs().max()
    assert (got.logvar - expected.logvar).abs().max() <= 1e-5 * expected.logvar.abs().max()


def test_its_decoder_begins_by_interpolating_the_features_of_the_smaller_one() -> None:
    small = randomise(new_vae(), seed=5).eval()
    vae, seen = grown_vae(small), {}
    small.decoder.norm_out.register_forward_pre_hook(lambda module, given: seen.update(small=given[0]))
    vae.decoder.norm_out.register_forward_pre_hook(lambda module, given: seen.update(grown=given[0]))
    latents = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        small.decode(latents)
        vae.decode(latents)
    expected = F.interpolate(seen["small"], scale_factor=2.0, mode="bilinear")
    inside = (..., slice(2, -2), slice(2, -2))  # the border differs: a convolution pads with zeros
    assert (seen["grown"][inside] - expected[inside]).abs().max() <= 1e-5 * expected.abs().max()


def test_predictions_of_a_perfect_unet_are_the_latents() -> None:
    """Of the true velocity, at any timestep; guidance changes nothing where both predictions agree."""
    scenes = training_scenes(6, seed=0)
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    asked: list[torch.Tensor] = []

    def unet(xt: torch.Tensor, t: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        asked.append(t)
        alpha_bar = SCHEDULE.alpha_bars[t].float()[:, None, None, None]
        return (alpha_bar.sqrt() * xt - torch.cat([latents, latents])) / (1 - alpha_bar).sqrt()

    def text_encoder(ids: torch.Tensor) -> torch.Tensor:
        assert len(ids) == 12
        return torch.zeros(12, 1, 1)

    defaults = SimpleNamespace(guidance_scale=3.0)
    sd = SimpleNamespace(unet=unet, text_encoder=text_encoder, tokenizer=new_tokenizer(), defaults=defaults)
    got = predicted_latents(sd, latents, scenes, torch.Generator().manual_seed(2))  # type: ignore[arg-type]
    assert (got - latents).abs().max() < 1e-4
    assert len(set(asked[0][:6].tolist())) > 1
    assert TIMESTEPS[0] <= asked[0].min()
    assert asked[0].max() < TIMESTEPS[1]


def test_the_best_answer_to_two_possible_targets_is_one_of_them() -> None:
    """A pixel is red in two images of three, and blue in the third."""
    red, blue = torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0])
    targets = torch.stack([red, red, blue])[:, :, None, None].expand(3, 3, 8, 8)

    def loss_of(answer: torch.Tensor) -> float:
        return float(decisive_loss(answer[None, :, None, None].expand(3, 3, 8, 8), targets))

    answers = {share: loss_of(torch.lerp(blue, red, share)) for share in (0, 0.25, 0.5, 2 / 3, 0.75, 0.9, 1)}
    assert min(answers, key=answers.__getitem__) == 1
    assert answers[0] < answers[0.5]
    assert decisive_loss(targets, targets) == 0
    assert decisive_loss(targets.flip(1), targets) > 2 * decisive_loss(0.9 * targets, targets)  # far errors count
