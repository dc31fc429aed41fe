"""CLIP's training: the loss is InfoNCE, the text encoder stays frozen, a batch fits together."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import steps_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from minisd.errors import MismatchError
from minisd.models import CLIP, CLIPTextTransformer
from minisd.sticker.training import contrastive
from minisd.sticker.training.clip_image import clip_pixels, image_probe_batch
from minisd.sticker.training.contrastive import IMAGE_CONFIG, contrastive_loss, new_clip, sample_batch, train_clip
from minisd.sticker.training.dataset import new_tokenizer, training_scenes
from minisd.sticker.training.hard_negatives import NEGATIVES_PER_IMAGE
from minisd.sticker.training.text_encoder import (
    CAPTION_QUESTIONS,
    OBJECT_QUESTIONS,
    new_caption_probe,
    text_config,
)
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.checker.check import judge
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.render import render
from minisd.tokenizer import Tokenizer


@cache
def tokenizer() -> Tokenizer:
    return new_tokenizer()


def text_encoder(seed: int = 0) -> CLIPTextTransformer:
    return new_caption_probe(text_config(len(tokenizer())), seed).text_encoder.eval()


class FixedTexts(CLIP):
    """CLIP with given text vectors."""

    def __init__(self, texts: Tensor, scale: float) -> None:
        torch.nn.Module.__init__(self)
        self.texts = texts
        self.logit_scale = torch.nn.Parameter(torch.tensor(scale).log())

    def embed_texts(self, ids: Tensor) -> Tensor:
        return self.texts


def test_the_loss_is_infonce_with_own_negatives() -> None:
    """Against the formula, image by image and text by text."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (4, 16))
    also_true = torch.zeros(4, 4, dtype=torch.bool)
    also_true[0, 2] = also_true[3, 1] = True
    got = contrastive_loss(FixedTexts(texts, 5.0), images, torch.empty(0), also_true)
    total = 0.0
    for i in range(4):
        own = [4 + 3 * i, 5 + 3 * i, 6 + 3 * i]
        others = [j for j in range(4) if not also_true[i, j]]
        logits = 5 * texts[others + own] @ images[i]
        total -= logits.log_softmax(0)[others.index(i)].item()
        candidates = [j for j in range(4) if not also_true[j, i]]
        logits = 5 * images[candidates] @ texts[i]
        total -= logits.log_softmax(0)[candidates.index(i)].item()
    assert got.item() == pytest.approx(total / 8, abs=1e-5)


def test_positions_start_as_waves_in_which_neighbours_are_similar() -> None:
    positions = new_clip(text_encoder()).image_encoder.position_embedding.weight.detach()
    assert torch.equal(positions[0], torch.zeros(128))
    grid = positions[1:].view(8, 8, 128)
    similarity = torch.nn.functional.cosine_similarity(grid[3, 3], grid, dim=2)
    assert similarity[3, 3] == similarity.max()
    assert torch.allclose(similarity[2:5, 3], similarity[3, 2:5])
    for near, far in (((3, 4), (3, 5)), ((2, 3), (1, 3)), ((3, 5), (3, 7)), ((4, 4), (7, 7))):
        assert similarity[near] > similarity[far] + 0.02
    assert len(positions.unique(dim=0)) == 65


def test_a_start_gives_its_image_encoder_and_projections() -> None:
    """The start has a text encoder with another vocabulary."""
    config = replace(text_config(9), projection_width=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = CLIP(config, IMAGE_CONFIG)
    clip = new_clip(text_encoder(), start=start)
    pixels = render(training_scenes(2, seed=5), 64)
    with torch.no_grad():
        assert torch.equal(clip.embed_images(pixels), start.embed_images(pixels))
    assert torch.equal(clip.text_encoder.text_projection.weight, start.text_encoder.text_projection.weight)
    assert clip.logit_scale == start.logit_scale
    assert len(clip.text_encoder.token_embedding.weight) == len(tokenizer())
    other = CLIP(config, replace(IMAGE_CONFIG, layers=1))
    with pytest.raises(MismatchError, match="other sizes"):
        new_clip(text_encoder(), start=other)


def test_the_loss_has_contrast_and_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(
        contrastive,
        "train",
        lambda model, loss, *others: made.extend([model, loss]) or deepcopy(model).requires_grad_(False),
    )
    train_clip(text_encoder(), tokenizer(), steps_of(tmp_path / "run.pt", 1), batch=6)
    probe, loss = made
    with torch.no_grad():
        got = loss(torch.Generator().manual_seed(2), 0.0).item()
        scenes, ids, also_true = sample_batch(tokenizer(), 6, torch.Generator().manual_seed(2))
        clip, pixels = probe.clip, clip_pixels(scenes, IMAGE_CONFIG.image_size)
        states, right = clip.image_encoder(pixels), image_probe_batch(scenes, 8)
        class_token = clip.image_encoder.post_norm(states[:, 0])
        logits = class_token @ probe.image_layer.weight.T + probe.image_layer.bias
        parts = logits.split([len(possible) for possible in CAPTION_QUESTIONS.values()], 1)
        answering = sum(cross_entropy(each, right.answers[:, i]).item() for i, each in enumerate(parts))
        patches = torch.stack([states[row, patch] for row, patch in right.patches.tolist()])
        logits = patches @ probe.patch_layer.weight.T + probe.patch_layer.bias
        parts = logits.split([len(possible) for possible in OBJECT_QUESTIONS.values()], 1)
        answering += sum(cross_entropy(each, right.object_answers[:, i]).item() for i, each in enumerate(parts))
        expected = contrastive_loss(clip, clip.embed_images(pixels), ids, also_true).item() + 0.3 * answering
    assert got == pytest.approx(expected, rel=1e-5)


def test_a_batch_fits_together() -> None:
    scenes, ids, also_true = sample_batch(tokenizer(), 40, torch.Generator().manual_seed(0))
    assert ids.shape[0] == 40 * (1 + NEGATIVES_PER_IMAGE)
    texts = [tokenizer().decode(row, skip_special=True) for row in ids]
    detections = [(tuple(found), background) for found, background in map(detect_objects, render(scenes, 64))]
    for i, (objects, background) in enumerate(detections):
        assert judge(objects, background, parse_caption(texts[i])).exact
        for text in texts[40 + NEGATIVES_PER_IMAGE * i :][:NEGATIVES_PER_IMAGE]:
            assert not judge(objects, background, parse_caption(text)).exact
        for j, caption in enumerate(texts[:40]):
            if i != j and judge(objects, background, parse_caption(caption)).exact:
                assert also_true[i, j]
    assert not also_true.diagonal().any()
    assert 0 < also_true.sum() < 40  # some captions are true of another image, most are not


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_the_text_encoder_stays_frozen(tmp_path: Path) -> None:
    encoder = text_encoder(seed=3)  # not that of a new CLIP
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    lines: list[str] = []
    run = steps_of(tmp_path / "clip.pt", 100, lines.append)
    clip = train_clip(encoder, tokenizer(), run, batch=8)
    assert "%" in lines[-1]
    assert not clip.training
    start = new_clip(encoder)
    scenes, ids, also_true = sample_batch(tokenizer(), 24, torch.Generator().manual_seed(9))
    pixels = clip_pixels(scenes, IMAGE_CONFIG.image_size)
    with torch.no_grad():
        first, last = (
            contrastive_loss(each, each.embed_images(pixels), ids, also_true).item() for each in (start, clip)
        )
    assert last < first - 0.15
    for name, weight in clip.text_encoder.state_dict().items():
        if name == "text_projection.weight":
            assert not torch.equal(weight, start.text_encoder.text_projection.weight)
        else:
            assert torch.equal(weight, before[name]), name
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())
    trained = {name for name, p in start.named_parameters() if p.requires_grad}
    assert {name for name in trained if name.startswith("text_encoder")} == {"text_encoder.text_projection.weight"}
    moved = {n for n, p in clip.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert moved == trained


def test_the_scale_stays_below_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_large_scale(encoder: CLIPTextTransformer, start: None) -> CLIP:
        clip = new_clip(encoder)
        clip.logit_scale.data.fill_(9.0)
        return clip

    monkeypatch.setattr(contrastive, "new_clip", with_large_scale)
    clip = train_clip(text_encoder(), tokenizer(), steps_of(tmp_path / "clip.pt", 3), batch=2)
    assert clip.logit_scale.exp().item() <= 100.001
