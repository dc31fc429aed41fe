"""The measures of adapters, for painters that are right or wrong by construction, and for the embedded adapters."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support import painter

import weights_loader
from minisd.sticker.evaluation.adapters import measure_embedding, measure_night_lora
from minisd.sticker.training.examples import MOON, TOKEN
from minisd.sticker.world.scene import Scene


def knows_the_word(request: Any) -> Scene:
    return painter.as_requested(SimpleNamespace(prompt=request.prompt.replace(TOKEN, "pink star"), seed=request.seed))


def under_the_moon(request: Any) -> Scene:
    scene = painter.as_requested(request)
    low = tuple(replace(obj, x=0.4, y=0.6, radius=0.1) for obj in scene.objects)
    return Scene((*low, MOON), "black")


def test_a_known_word_and_an_unknown_one() -> None:
    knows = painter.Painter(knows_the_word)
    assert measure_embedding(knows, 12, 0, TOKEN).value == 1  # type: ignore[arg-type]
    prompts = [prompt for batch, _ in knows.calls for prompt in batch]
    assert len(prompts) == 12
    assert all(TOKEN in prompt and "pink star" not in prompt for prompt in prompts)
    assert measure_embedding(painter.Painter(), 12, 0, "red ring").value == 0  # type: ignore[arg-type]
    assert measure_embedding(painter.Painter(), 12, 0, "pink star").value == 1  # type: ignore[arg-type]


def test_images_at_night_and_by_day() -> None:
    assert measure_night_lora(painter.Painter(under_the_moon), 12, 0).value == 1  # type: ignore[arg-type]
    assert measure_night_lora(painter.Painter(), 12, 0).value == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["candy", "night"])
def test_the_embedded_adapters_work(name: str) -> None:
    sd = weights_loader.load("sticker")
    sd.defaults = replace(sd.defaults, num_inference_steps=6)
    path = weights_loader.resolve("sticker") / "adapters" / f"{name}.safetensors"
    if name == "candy":
        assert weights_loader.load_embedding(sd, path) == [TOKEN]
        assert measure_embedding(sd, 12, 5, TOKEN).value >= 0.5
    else:
        before = measure_night_lora(sd, 12, 5)
        weights_loader.load_lora(sd, path)
        assert before.value <= 0.1
        assert measure_night_lora(sd, 12, 5).value >= 0.5
