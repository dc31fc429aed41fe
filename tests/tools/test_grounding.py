"""Two UNets, trained with the grounding loss and without it, compared."""

import json
from pathlib import Path

import pytest
import torch
from support.runs import steps_of

import weights_loader
from minisd.errors import ResumeError
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.training.autoencoder import new_vae
from minisd.sticker.training.dataset import new_tokenizer
from minisd.sticker.training.text_encoder import new_caption_probe, text_config
from minisd.sticker.training.unet import new_unet, train_unet
from tools.grounding import compare, point_in_scenes


def test_both_are_trained_and_measured(tmp_path: Path) -> None:
    found = compare(tmp_path, steps=1, count=2, pool=4, batch=2)
    assert found == json.loads((tmp_path / "grounding.json").read_text())
    assert found["with"]["single"]["hits"]["count"] == found["without"]["single"]["hits"]["count"] == 2
    first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("with", "without"))
    assert any(not torch.equal(each, second["model"][name]) for name, each in first["model"].items())


def test_a_run_with_another_weight_is_not_continued(tmp_path: Path) -> None:
    tokenizer, vae = new_tokenizer(), new_vae().eval()
    text_encoder = new_caption_probe(text_config(len(tokenizer))).text_encoder
    run = steps_of(tmp_path / "a.pt", 1)
    train_unet(vae, tokenizer, text_encoder, new_unet(), run, pool=2, batch=1, grounding=0.0)
    with pytest.raises(ResumeError, match="grounding"):
        train_unet(vae, tokenizer, text_encoder, new_unet(), run, pool=2, batch=1)


def test_the_shipped_unet_points_at_the_objects_and_an_untrained_one_does_not() -> None:
    sd = weights_loader.load("sticker")
    examples = suite_examples("two", 12, 0, sd.defaults.words)
    hits, chance = point_in_scenes(sd, examples, seed=0)
    assert hits.right > 0.7 * hits.total > 0
    assert 0.01 < chance < 0.15
    sd.unet = new_unet().eval()
    hits, _ = point_in_scenes(sd, examples, seed=0)
    assert hits.right < 0.4 * hits.total
