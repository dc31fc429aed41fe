"""The text encoder: the questions of its probes with their answers, a short training, and the transfer of weights."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from support.runs import steps_of
from support.small import randomise

from minisd.models import CLIPTextTransformer
from minisd.sticker.training import text_encoder
from minisd.sticker.training.dataset import CAPTION_TOKENS, learn_vocabulary, new_tokenizer
from minisd.sticker.training.text_encoder import (
    CAPTION_QUESTIONS,
    OBJECT_QUESTIONS,
    FrozenReference,
    caption_answers,
    new_caption_probe,
    probe_accuracy,
    sample_probe_batch,
    text_config,
    train_text_encoder,
    transfer_weights,
)
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.synonyms import CAPTION_WORD


@pytest.fixture(autouse=True)
def short_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a training, fewer captions are measured."""
    monkeypatch.setattr(text_encoder, "probe_accuracy", partial(probe_accuracy, count=100))


def answers_to(caption: str) -> dict[str, object]:
    """The answers about a caption, without those that it does not mention."""
    answers = zip(CAPTION_QUESTIONS.items(), caption_answers(parse_caption(caption)), strict=True)
    return {question: possible[i] for (question, possible), i in answers if possible[i] is not None}


def test_all_wordings_have_the_same_answers() -> None:
    expected = {
        "number": 2,
        "relation": "left of",
        "background": "beige",
        "first shape": "star",
        "first colour": "red",
        "first size": "large",
        "second shape": "ring",
        "second colour": "blue",
        "second size": "small",
    }
    assert answers_to("a large red star to the left of a small blue ring on a beige background") == expected
    assert answers_to("a small blue ring right of a large red star on a beige background") == expected
    assert answers_to("there is a small blue ring with a large red star left of it on a beige background") == expected


def test_open_attributes_have_no_answer() -> None:
    assert answers_to("a shape") == {"number": 1}
    assert answers_to("a red shape below a ring") == {
        "number": 2,
        "relation": "above",
        "first shape": "ring",
        "second colour": "red",
    }
    assert answers_to("three small rings") == {"number": 3, "first shape": "ring", "first size": "small"}
    assert answers_to("a shape above a shape") == {"number": 2, "relation": "above"}
    assert answers_to("a star at the top")["first position"] == ("top", "middle")


def test_there_are_questions_about_styles_and_overlaps() -> None:
    behind = {"number": 2, "relation": "behind", "first shape": "star", "second shape": "ring", "second colour": "red"}
    assert answers_to("a star behind a red ring") == answers_to("a red ring in front of a star") == behind
    outline = {"number": 1, "first shape": "star", "first style": "outline"}
    assert answers_to("an outlined star") == answers_to("a star outline") == outline
    assert answers_to("two star stickers")["first style"] == "sticker"


def test_captions_and_answers_fit_together() -> None:
    tokenizer = new_tokenizer()
    ids, answers, nouns, noun_answers = sample_probe_batch(tokenizer, 20, torch.Generator().manual_seed(0))
    assert ids.shape == (20, CAPTION_TOKENS)
    for row, expected in zip(ids, answers, strict=True):
        assert caption_answers(parse_caption(tokenizer.decode(row, skip_special=True))) == expected.tolist()
    assert len(nouns) == len(noun_answers) > 20
    for (row, token), (shape, *_, style) in zip(nouns.tolist(), noun_answers.tolist(), strict=True):
        words = tokenizer.decode(ids[row, token - 1 : token + 1], skip_special=True).split()
        before, last = words[0], words[-1]  # one word, where the caption begins with it
        styled = last.rstrip("s") in ("outline", "sticker", "decal")
        noun = CAPTION_WORD.get(before if styled else last, before if styled else last)
        assert noun.rstrip("es").startswith((OBJECT_QUESTIONS["shape"][shape] or "shape").rstrip("es"))
        assert OBJECT_QUESTIONS["style"][style] is not None or not styled


def test_there_is_an_answer_for_what_is_next_to_what() -> None:
    assert answers_to("a star next to a ring") == {
        "number": 2,
        "relation": "beside",
        "first shape": "star",
        "second shape": "ring",
    }


def test_it_learns(tmp_path: Path) -> None:
    tokenizer = new_tokenizer()
    config, lines = replace(text_config(len(tokenizer)), layers=2), []
    before = probe_accuracy(new_caption_probe(config), tokenizer, 200)
    run = steps_of(tmp_path / "a.pt", 40, lines.append)
    probe = train_text_encoder(new_caption_probe(config), tokenizer, run, batch=32)
    assert sum(probe_accuracy(probe, tokenizer, 200).values()) > sum(before.values()) + 2
    assert "caption probe" in lines[-1]


def test_a_reference_keeps_the_states(tmp_path: Path) -> None:
    tokenizer = new_tokenizer()
    start = new_caption_probe(text_config(len(tokenizer)), seed=4).text_encoder
    everything = FrozenReference(start, torch.ones(len(tokenizer), dtype=torch.bool))
    ids = sample_probe_batch(tokenizer, 50, torch.Generator().manual_seed(3)).ids
    drift = {}
    for name, reference in (("free", None), ("kept", everything)):
        probe = new_caption_probe(text_config(len(tokenizer)), seed=4)
        run = steps_of(tmp_path / f"{name}.pt", 20)
        probe = train_text_encoder(probe, tokenizer, run, batch=16, reference=reference)
        with torch.no_grad():
            drift[name] = float((probe.text_encoder(ids) - start(ids)).square().mean())
    assert drift["kept"] < drift["free"] / 2


def test_weights_are_transferred_from_a_smaller_vocabulary_and_fewer_layers() -> None:
    tokenizer, smaller = new_tokenizer(), learn_vocabulary(["a", "red", "circle"])
    start = randomise(CLIPTextTransformer(replace(text_config(len(smaller)), layers=2)), seed=8)
    encoder = new_caption_probe(text_config(len(tokenizer))).text_encoder
    untrained = encoder.token_embedding.weight.clone()
    reference = transfer_weights(encoder, tokenizer, start, smaller)
    with torch.no_grad():  # the same states for other ids
        states = encoder(tokenizer("a red circle")[:, :8])
        expected = start(smaller("a red circle")[:, :8])
    assert (states - expected).abs().max() <= 1e-5 * expected.abs().max()
    disc, circle = (tokenizer.token_to_id(f"{word}</w>") for word in ("disc", "circle"))
    assert torch.equal(encoder.token_embedding.weight[disc], encoder.token_embedding.weight[circle])  # copied
    with torch.no_grad():  # a synonym begins as its word
        assert (encoder(tokenizer("a red disc")[:, :8]) - states).abs().max() <= 1e-5 * states.abs().max()
    assert reference.known_tokens[tokenizer("a disc")].all()
    blue = tokenizer.token_to_id("blue</w>")
    assert torch.equal(encoder.token_embedding.weight[blue], untrained[blue])
    ids = tokenizer(["a red circle", "a blue circle"])[:, :8]
    with torch.no_grad():
        moved = encoder(ids) + torch.tensor([0.5, 9.0])[:, None, None]  # a text with a new word does not count
        assert reference.distance(moved, ids) == pytest.approx(0.5**2 / 2, rel=1e-4)
        for weight in encoder.parameters():
            weight.zero_()  # which does not change the reference
        assert reference.distance(moved, ids) == pytest.approx(0.5**2 / 2, rel=1e-4)
