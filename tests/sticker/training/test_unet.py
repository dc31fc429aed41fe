"""Training the UNet: timesteps and their weights, latents, and the check of a compiled UNet."""

from pathlib import Path

import pytest
import torch
from support.runs import linear, steps_of
from torch import Tensor

from minisd.errors import ResumeError
from minisd.models import UNet
from minisd.sticker.training.autoencoder import new_vae
from minisd.sticker.training.dataset import new_tokenizer, training_scenes
from minisd.sticker.training.diffusion import encode_scenes, expected_loss, sample_timesteps
from minisd.sticker.training.text_encoder import new_caption_probe, text_config
from minisd.sticker.training.unet import SCHEDULER, new_unet, train_unet
from minisd.training.trainer import load_average


def test_timesteps_with_a_large_expected_loss_weigh_less() -> None:
    first, middle, last = expected_loss(torch.tensor([0, 400, 999])).tolist()
    assert 0.03 < middle < first < last < 0.4


def test_timesteps_are_spread_and_the_noisiest_get_their_share() -> None:
    t = sample_timesteps(1000, torch.Generator().manual_seed(0))
    assert 0 <= t.min() < 3
    assert t.max() == 999
    assert (t.diff() >= 0).all()
    assert (t >= 700).float().mean() == pytest.approx(0.4, abs=0.01)
    assert len(set(sample_timesteps(24, torch.Generator().manual_seed(0)).tolist())) == 24


def test_the_latents_of_scenes_fit_the_unet() -> None:
    vae, tokenizer = new_vae().eval(), new_tokenizer()
    latents = encode_scenes(vae, training_scenes(3, seed=0))
    unet, text_encoder = new_unet(), new_caption_probe(text_config(len(tokenizer))).text_encoder
    with torch.no_grad():
        prediction = unet(latents, 10, text_encoder(tokenizer(["a red circle"] * 3)))
    assert prediction.shape == latents.shape
    assert SCHEDULER.schedule.alpha_bars[-1] == 0  # the last noise level is pure noise
    assert torch.equal(new_unet().conv_in.weight, unet.conv_in.weight)


def test_the_unet_is_trained_and_the_text_encoder_stays_frozen(tmp_path: Path) -> None:
    tokenizer, vae, unet = new_tokenizer(), new_vae().eval(), new_unet()
    text_encoder = new_caption_probe(text_config(len(tokenizer))).text_encoder
    before = {name: weight.clone() for name, weight in text_encoder.state_dict().items()}
    lines: list[str] = []
    run = steps_of(tmp_path / "a.pt", 4, lines.append)
    train_unet(vae, tokenizer, text_encoder, unet, run, pool=4, batch=2)
    assert "4 scenes encoded" in lines[0]
    assert not torch.equal(unet.conv_in.weight, new_unet().conv_in.weight)
    assert all(torch.equal(before[name], weight) for name, weight in text_encoder.state_dict().items())
    again, stored = load_average(new_unet(), tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(torch.equal(weight, stored["average"][name]) for name, weight in again.state_dict().items())
    with pytest.raises(ResumeError, match="another model"):
        load_average(linear(), tmp_path / "a.pt")


def test_the_learning_rate_counts(tmp_path: Path) -> None:
    vae, unet, tokenizer = new_vae().eval(), new_unet(), new_tokenizer()
    encoder = new_caption_probe(text_config(len(tokenizer))).text_encoder
    train_unet(vae, tokenizer, encoder, unet, steps_of(tmp_path / "a.pt", 1), pool=4, batch=2, learning_rate=0.0)
    assert torch.equal(unet.conv_out.weight, new_unet().conv_out.weight)


@pytest.mark.parametrize("right", [True, False])
def test_a_compiled_unet_that_loses_gradients_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """As in torch 2.13 on the CPU in bfloat16: the prediction is right, but the text attention gets no gradients."""
    calls = 0

    def compiled(unet: UNet) -> object:
        def predict(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if right:
                return unet(x, t, text)
            with torch.no_grad():
                prediction = unet(x, t, text)
            return prediction + 0 * unet(x, t, text)

        return predict

    monkeypatch.setattr(torch, "compile", compiled)
    tokenizer, lines = new_tokenizer(), []
    text_encoder = new_caption_probe(text_config(len(tokenizer))).text_encoder
    run = steps_of(tmp_path / "a.pt", 3, lines.append)
    train_unet(new_vae(), tokenizer, text_encoder, new_unet(), run, pool=4, batch=2, compiled=True)
    assert calls == (4 if right else 1)
    assert any("gradients are wrong by 100%" in line for line in lines) is not right
