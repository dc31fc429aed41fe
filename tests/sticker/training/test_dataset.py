"""The training scenes, in the shares that the model card states, and the vocabulary."""

import pytest
import torch

from minisd.sticker.training.dataset import (
    CAPTION_TOKENS,
    VOCABULARY,
    apply_merges,
    learn_vocabulary,
    new_tokenizer,
    training_scenes,
    write_training_caption,
)
from minisd.sticker.world.captions import (
    TWO_CLAUSES,
    TWO_OBJECTS,
    noun_indices,
    parse_caption,
    sample_caption,
    select_content,
    write_caption,
)
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.splits import held_out
from minisd.sticker.world.styles import STYLES


def test_training_scenes_show_everything_that_is_not_held_out() -> None:
    scenes = training_scenes(1000, seed=3)
    assert not any(map(held_out, scenes))
    pairs = [scene for scene in scenes if scene.relation]
    several = [scene for scene in scenes if len(scene.objects) > 1 and not scene.relation]
    assert 0.45 < len(pairs) / 1000 < 0.55
    assert 0.3 < len(several) / 1000 < 0.4
    assert {len(scene.objects) for scene in several} == {2, 3, 4, 5}
    assert 0.45 < sum(scene.overlapping for scene in pairs) / len(pairs) < 0.58
    assert 0.15 < sum(any(obj.style != "flat" for obj in scene.objects) for scene in scenes) / 1000 < 0.26
    assert {obj.style for scene in scenes for obj in scene.objects} == set(STYLES)
    assert {obj.shape for scene in scenes for obj in scene.objects} == set(SHAPES)
    assert 0.6 < sum(scene.background == "white" for scene in scenes) / 1000 < 0.7


def test_training_scenes_depend_on_the_seed_alone() -> None:
    assert training_scenes(20, seed=4) == training_scenes(30, seed=4)[:20]
    assert training_scenes(20, seed=4) != training_scenes(20, seed=5)


def test_training_captions_in_two_clauses_are_read_and_are_none_of_the_held_out_ones() -> None:
    held_out_templates = {template: 1.0 for template, weight in TWO_OBJECTS.items() if weight == 0}
    assert not TWO_CLAUSES.keys() & TWO_OBJECTS.keys()
    generator = torch.Generator().manual_seed(5)
    texts, others = set(), set()
    for scene in training_scenes(600, seed=5):
        content = select_content(scene, generator)
        texts.add(text := write_training_caption(content, generator))
        if " it" in text:
            read = parse_caption(text)
            assert read.relation is not None
            assert len(noun_indices(text, content)) == 2
        if content.relation is not None:
            others.add(write_caption(content, generator, held_out_templates))
    assert sum(" is " in text and " it" in text for text in texts) > 5
    assert len(others) > 100
    assert not texts & others


@pytest.mark.parametrize("seed", [0, 1])
def test_the_shares_are_the_same_for_every_seed(seed: int) -> None:
    scenes = training_scenes(300, seed)
    assert scenes == training_scenes(300, seed)
    assert scenes != training_scenes(300, seed + 10)
    assert not any(map(held_out, scenes))
    assert sum(scene.relation is not None for scene in scenes) / 300 == pytest.approx(0.49, abs=0.08)
    assert sum(scene.alike for scene in scenes) / 300 == pytest.approx(0.36, abs=0.08)


def test_every_word_of_the_world_is_one_token_and_captions_are_short() -> None:
    tokenizer = new_tokenizer()
    assert [word for word in VOCABULARY.split() if len(tokenizer.tokenize(word)) != 1] == []
    generator = torch.Generator().manual_seed(0)
    captions = [sample_caption(scene, generator) for scene in training_scenes(300, seed=0)]
    lengths = tokenizer.encode(captions).attention_mask.sum(1)
    assert lengths.max() <= CAPTION_TOKENS  # so that training loses nothing by cutting the padding
    assert tokenizer.decode(tokenizer("a café 東京")[0], skip_special=True) == "a café 東京"


def test_the_learned_merges_are_byte_pair_encoding() -> None:
    words = ["orange", "and", "an", "band", "bandana"]
    tokenizer = learn_vocabulary(words)
    for word in [*words, "banana", "sand"]:
        assert tokenizer.tokenize(word) == apply_merges(word, tokenizer.merges)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
