"""CLIP's measures: captions are complete, scenes distinct, and the accuracies those of models with known answers."""

import pytest
import torch
from torch import Tensor

from minisd.models import CLIP
from minisd.sticker.training import retrieval
from minisd.sticker.training.contrastive import new_clip
from minisd.sticker.training.dataset import new_tokenizer, training_scenes
from minisd.sticker.training.hard_negatives import compatible
from minisd.sticker.training.retrieval import (
    distinct_scenes,
    full_caption,
    hard_negative_accuracy,
    retrieval_accuracy,
)
from minisd.sticker.training.text_encoder import new_caption_probe, text_config
from minisd.sticker.world.captions import expectation_of, parse_caption
from minisd.sticker.world.checker.check import judge
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import SIZES, Object, Scene
from minisd.tokenizer import Tokenizer

TOKENIZER = new_tokenizer()


def untrained_clip() -> CLIP:
    return new_clip(new_caption_probe(text_config(len(TOKENIZER))).text_encoder)


def test_full_captions_mention_all_attributes_with_words() -> None:
    generator = torch.Generator().manual_seed(4)
    for scene in training_scenes(400, seed=5):
        whole, content = expectation_of(scene), parse_caption(full_caption(scene, generator))
        assert compatible(whole, content)
        assert content.background == scene.background
        assert (content.relation is None) == (scene.relation is None)
        for obj in content.objects:
            assert obj.shape is not None
            assert obj.colour is not None
        assert sorted(obj.size or "medium" for obj in content.objects) == sorted(obj.size for obj in scene.objects)
        if len(scene.objects) == 1:
            assert content.objects[0].position == whole.objects[0].position


def test_distinct_scenes_have_captions_that_are_true_of_no_other() -> None:
    scenes, captions = distinct_scenes(30, seed=1)
    contents = [parse_caption(caption) for caption in captions]
    for i, (found, background) in enumerate(map(detect_objects, render(scenes, 64))):
        assert [j for j in range(30) if judge(tuple(found), background, contents[j]).exact] == [i]


@pytest.mark.parametrize("order", [("medium", "small"), ("small", "medium")])
def test_a_caption_that_is_true_of_two_scenes_is_not_distinct(
    monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    """A medium size is not mentioned, so the caption is true of a small object, too; only the first scene is kept."""
    objects = [Object("circle", "red", size, 0.5, 0.5, SIZES[size][0]) for size in order]
    scenes = [Scene((each,)) for each in (*objects, Object("star", "blue", "large", 0.5, 0.5, 0.19))]
    rest = iter(scenes)
    monkeypatch.setattr(retrieval, "sample_training_scene", lambda generator: next(rest))
    assert distinct_scenes(2, seed=0)[0] == [scenes[0], scenes[2]]


def test_retrieval_distinguishes_the_two_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = untrained_clip()
    monkeypatch.setattr(retrieval, "embed_scenes", lambda clip, scenes: torch.eye(20))
    monkeypatch.setattr(retrieval, "embed_captions", lambda clip, tokenizer, captions: torch.eye(20))
    assert retrieval_accuracy(clip, TOKENIZER, 20, seed=1) == {"text to image": 1.0, "image to text": 1.0}
    texts = torch.eye(20)
    texts[0] = 2  # the closest text to every image, though each text finds its own image
    texts[0, 0] = 3
    monkeypatch.setattr(retrieval, "embed_captions", lambda clip, tokenizer, captions: texts)
    result = retrieval_accuracy(clip, TOKENIZER, 20, seed=1)
    assert result == {"text to image": 1.0, "image to text": pytest.approx(1 / 20)}


@pytest.mark.parametrize("sign", [1, -1])
def test_hard_negative_accuracy_of_a_perfect_model(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    """And of one that always prefers the untrue caption."""
    measured: list[Scene] = []

    def scenes_as_ones(clip: CLIP, scenes: list[Scene]) -> Tensor:
        measured[:] = scenes
        return torch.ones(len(scenes), 1)

    def truth(clip: CLIP, tokenizer: Tokenizer, captions: list[str]) -> Tensor:
        found = [(tuple(found), background) for found, background in map(detect_objects, render(measured, 64))]
        right = [judge(*each, parse_caption(text)).exact for each, text in zip(found, captions, strict=True)]
        return sign * torch.tensor(right).float()[:, None]

    monkeypatch.setattr(retrieval, "embed_scenes", scenes_as_ones)
    monkeypatch.setattr(retrieval, "embed_captions", truth)
    accuracy = hard_negative_accuracy(untrained_clip(), TOKENIZER, 20, seed=2)
    assert accuracy == (1.0 if sign == 1 else 0.0)


def test_an_untrained_clip_is_right_by_chance() -> None:
    clip = untrained_clip()
    assert 0.3 < hard_negative_accuracy(clip, TOKENIZER, 100) < 0.7
    assert max(retrieval_accuracy(clip, TOKENIZER, 50).values()) < 0.15
