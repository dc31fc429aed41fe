"""The measures of adapters, on drawings that are right or wrong by construction, and on the embedded ones."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support import painter

import weights_loader
from minisd.sticker.evaluation.adapters import at_night, composed
from minisd.sticker.training.examples import MOON, WORD
from minisd.sticker.world.scene import Scene


def who_knows_the_word(asked: Any) -> Scene:
    return painter.as_asked(SimpleNamespace(prompt=asked.prompt.replace(WORD, "pink star"), seed=asked.seed))


def under_the_moon(asked: Any) -> Scene:
    scene = painter.as_asked(asked)
    low = tuple(replace(thing, x=0.4, y=0.6, radius=0.1) for thing in scene.things)
    return Scene((*low, MOON), "black")


def test_a_word_that_is_known_and_one_that_is_not() -> None:
    knows = painter.Painter(who_knows_the_word)
    assert composed(knows, 12, 0, WORD).value == 1  # type: ignore[arg-type]
    prompts = [prompt for batch, _ in knows.calls for prompt in batch]
    assert len(prompts) == 12
    assert all(WORD in prompt and "pink star" not in prompt for prompt in prompts)
    assert composed(painter.Painter(), 12, 0, "red ring").value == 0  # type: ignore[arg-type]
    assert composed(painter.Painter(), 12, 0, "pink star").value == 1  # type: ignore[arg-type]


def test_night_and_day() -> None:
    assert at_night(painter.Painter(under_the_moon), 12, 0).value == 1  # type: ignore[arg-type]
    assert at_night(painter.Painter(), 12, 0).value == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["candy", "night"])
def test_the_embedded_ones_do_what_they_learned(name: str) -> None:
    sd = weights_loader.load("sticker")
    path = weights_loader.resolve("sticker") / "adapters" / f"{name}.safetensors"
    if name == "candy":
        assert weights_loader.load_embedding(sd, path) == [WORD]
        assert composed(sd, 12, 5, WORD).value >= 0.5
    else:
        before = at_night(sd, 12, 5)
        weights_loader.load_lora(sd, path)
        assert before.value <= 0.1
        assert at_night(sd, 12, 5).value >= 0.5
