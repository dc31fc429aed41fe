"""The stages: each one continues a killed run bit for bit. tests/cli/test_train.py trains them all."""

from pathlib import Path

import pytest
from support.runs import check_killed_runs, steps_of
from torch import Tensor

from minisd.sticker.training.autoencoder import new_vae, train_vae
from minisd.sticker.training.contrastive import train_clip
from minisd.sticker.training.dataset import new_tokenizer
from minisd.sticker.training.text_encoder import new_caption_probe, text_config, train_text_encoder
from minisd.sticker.training.unet import new_unet, train_unet


@pytest.mark.parametrize("stage", ["vae", "text", "unet", "clip"])
def test_a_stage_killed_at_random_ends_in_the_same_weights_bit_for_bit(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisd.sticker.training.autoencoder.normalise", lambda vae: None)

    def train_to(path: Path) -> dict[str, Tensor]:
        run = steps_of(path, 12)
        if stage == "vae":
            return train_vae(run, batch=2).state_dict()
        tokenizer = new_tokenizer()
        probe = new_caption_probe(text_config(len(tokenizer)))
        if stage == "text":
            return train_text_encoder(probe, tokenizer, run, batch=2).state_dict()
        if stage == "clip":
            return train_clip(probe.text_encoder, tokenizer, run, batch=2).state_dict()
        unet = train_unet(new_vae(), tokenizer, probe.text_encoder, new_unet(), run, pool=8, batch=2)
        return unet.state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)
