"""The text encoder learns to read: the questions, their answers, and that a little training helps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small import randomise

from minisd.models import CLIPTextTransformer
from minisd.sticker.training.dataset import SHORT, lessons, new_tokenizer
from minisd.sticker.training.text_encoder import (
    OF_A_THING,
    QUESTIONS,
    Anchor,
    adopt,
    answers,
    new_reader,
    read_captions,
    reading_accuracy,
    train_reader,
)
from minisd.sticker.training.unet import text_config
from minisd.sticker.training.vocabulary import learn_vocabulary
from minisd.sticker.world.captions import expectation
from minisd.sticker.world.splits import held_out


def read(prompt: str) -> dict[str, object]:
    """What a caption says, but for what it does not."""
    said = zip(QUESTIONS.items(), answers(expectation(prompt)), strict=True)
    return {question: possible[i] for (question, possible), i in said if possible[i] is not None}


def test_however_it_is_put_the_answers_are_the_same() -> None:
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
    assert read("a large red star to the left of a small blue ring on a beige background") == expected
    assert read("a small blue ring right of a large red star on a beige background") == expected
    assert read("there is a small blue ring with a large red star left of it on a beige background") == expected


def test_what_is_left_open_has_no_answer() -> None:
    assert read("a shape") == {"number": 1}
    assert read("a red shape below a ring") == {
        "number": 2,
        "relation": "above",
        "first shape": "ring",
        "second colour": "red",
    }
    assert read("three small rings") == {"number": 3, "first shape": "ring", "first size": "small"}
    assert read("a shape above a shape") == {"number": 2, "relation": "above"}
    assert read("a star at the top")["first position"] == ("top", "middle")


def test_styles_and_what_is_behind_are_asked_about() -> None:
    said = {"number": 2, "relation": "behind", "first shape": "star", "second shape": "ring", "second colour": "red"}
    assert read("a star behind a red ring") == read("a red ring in front of a star") == said
    assert (
        read("an outlined star")
        == read("a star outline")
        == {"number": 1, "first shape": "star"} | {"first style": "outline"}
    )
    assert read("two star stickers")["first style"] == "sticker"


def test_captions_and_answers_go_together() -> None:
    tokenizer = new_tokenizer()
    ids, right, at, attributes = read_captions(tokenizer, 20, torch.Generator().manual_seed(0))
    assert ids.shape == (20, SHORT)
    for row, expected in zip(ids, right, strict=True):
        assert answers(expectation(tokenizer.decode(row, skip_special=True))) == expected.tolist()
    assert len(at) == len(attributes) > 20
    for (row, token), (shape, *_, style) in zip(at.tolist(), attributes.tolist(), strict=True):
        before, last = tokenizer.decode(ids[row, token - 1 : token + 1], skip_special=True).split()
        styled = last.rstrip("s") in ("outline", "sticker", "decal")
        noun = before if styled else last
        assert noun.rstrip("es").startswith((OF_A_THING["shape"][shape] or "shape").rstrip("es"))
        assert OF_A_THING["style"][style] is not None or not styled


def test_it_learns(tmp_path: Path) -> None:
    tokenizer = new_tokenizer()
    config, lines = text_config(len(tokenizer)), []
    before = reading_accuracy(new_reader(config), tokenizer, 200)
    reader = train_reader(new_reader(config), tokenizer, 0, tmp_path / "a.pt", lines.append, batch=32, steps=40)
    assert sum(reading_accuracy(reader, tokenizer, 200).values()) > sum(before.values()) + 2
    assert "reads captions" in lines[-1]


def test_an_anchor_holds_the_states(tmp_path: Path) -> None:
    tokenizer = new_tokenizer()
    start = new_reader(text_config(len(tokenizer)), seed=4).text_encoder
    everything = Anchor(start, torch.ones(len(tokenizer), dtype=torch.bool))
    ids = read_captions(tokenizer, 50, torch.Generator().manual_seed(3)).ids
    drift = {}
    for name, anchor in (("free", None), ("held", everything)):
        reader = new_reader(text_config(len(tokenizer)), seed=4)
        path = tmp_path / f"{name}.pt"
        reader = train_reader(reader, tokenizer, 0, path, lambda line: None, batch=16, steps=30, anchor=anchor)
        with torch.no_grad():
            drift[name] = float((reader.text_encoder(ids) - start(ids)).square().mean())
    assert drift["held"] < drift["free"] / 2


def test_a_text_encoder_adopts_one_with_fewer_words_and_layers() -> None:
    tokenizer, smaller = new_tokenizer(), learn_vocabulary(["a", "red", "circle"])
    start = randomise(CLIPTextTransformer(replace(text_config(len(smaller)), layers=2)), seed=8)
    encoder = new_reader(text_config(len(tokenizer))).text_encoder
    fresh = encoder.token_embedding.weight.clone()
    anchor = adopt(encoder, tokenizer, start, smaller)
    with torch.no_grad():  # the same states, whatever the ids
        states = encoder(tokenizer("a red circle")[:, :8])
        expected = start(smaller("a red circle")[:, :8])
    assert (states - expected).abs().max() <= 1e-5 * expected.abs().max()
    blue = tokenizer.token_to_id("blue</w>")
    assert torch.equal(encoder.token_embedding.weight[blue], fresh[blue])
    ids = tokenizer(["a red circle", "a blue circle"])[:, :8]
    with torch.no_grad():
        moved = encoder(ids) + torch.tensor([0.5, 9.0])[:, None, None]  # a text with a word that is new is free
        assert anchor.distance(moved, ids) == pytest.approx(0.5**2 / 2, rel=1e-4)
        for weight in encoder.parameters():
            weight.zero_()  # which the anchor does not notice
        assert anchor.distance(moved, ids) == pytest.approx(0.5**2 / 2, rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_lessons_are_seeded_and_never_what_is_held_out(seed: int) -> None:
    scenes = lessons(300, seed)
    assert scenes == lessons(300, seed)
    assert scenes != lessons(300, seed + 10)
    assert not any(map(held_out, scenes))
    assert sum(scene.relation is not None for scene in scenes) / 300 == pytest.approx(0.49, abs=0.08)
    assert sum(scene.alike for scene in scenes) / 300 == pytest.approx(0.36, abs=0.08)
