"""The stages: each one continues a killed run bit for bit. tests/cli/test_train.py trains them all."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import check_killed_runs, steps_of
from torch import Tensor

from minisd.pipeline import StableDiffusion
from minisd.sticker.training import autoencoder, contrastive, text_encoder, unet
from minisd.sticker.training.autoencoder import new_vae, train_vae
from minisd.sticker.training.contrastive import train_clip
from minisd.sticker.training.dataset import new_tokenizer
from minisd.sticker.training.grown_vae import train_grown_vae
from minisd.sticker.training.preview import train_preview
from minisd.sticker.training.stages import DEFAULTS
from minisd.sticker.training.text_encoder import new_caption_probe, text_config, train_text_encoder
from minisd.sticker.training.unet import SCHEDULER, new_unet, train_unet


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images and networks, and nothing measured after the training."""
    vae = replace(autoencoder.VAE_CONFIG, channels=(12, 16), norm_groups=4, sample_size=32)
    monkeypatch.setattr(autoencoder, "VAE_CONFIG", vae)
    levels = {"channels": (16, 32), "depths": (0, 1), "heads": (2, 4), "only_cross_attention": (False, False)}
    monkeypatch.setattr(unet, "UNET_CONFIG", replace(unet.UNET_CONFIG, norm_groups=4, **levels))
    monkeypatch.setattr(contrastive, "IMAGE_CONFIG", replace(contrastive.IMAGE_CONFIG, width=32, layers=1))
    monkeypatch.setattr(autoencoder, "normalise", lambda vae: None)
    monkeypatch.setattr(text_encoder, "probe_accuracy", lambda *arguments: {"number": 1.0})
    monkeypatch.setattr(contrastive, "hard_negative_accuracy", lambda *arguments, **options: 1.0)


@pytest.mark.parametrize("stage", ["vae", "text", "unet", "vae128", "preview", "clip"])
def test_a_stage_killed_at_random_ends_in_the_same_weights_bit_for_bit(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def train_to(path: Path) -> dict[str, Tensor]:
        run = steps_of(path, 12)
        if stage == "vae":
            return train_vae(run, batch=2).state_dict()
        tokenizer = new_tokenizer()
        probe = new_caption_probe(replace(text_config(len(tokenizer)), layers=1))
        if stage == "text":
            return train_text_encoder(probe, tokenizer, run, batch=2).state_dict()
        if stage == "clip":
            return train_clip(probe.text_encoder, tokenizer, run, batch=2).state_dict()
        if stage in ("vae128", "preview"):
            sd = StableDiffusion(tokenizer, probe.text_encoder, new_vae(), new_unet(), SCHEDULER, DEFAULTS)
            if stage == "preview":
                return train_preview(sd, run, pool=3).state_dict()
            return train_grown_vae(sd, run, batch=2).state_dict()
        trained = train_unet(new_vae(), tokenizer, probe.text_encoder, new_unet(), run, pool=8, batch=2)
        return trained.state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)
