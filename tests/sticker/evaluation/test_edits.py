"""The measure of Imagic: what counts as an edit, and the rates of painters."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import weights_loader
from minisd import images
from minisd.editing.imagic import Settings
from minisd.sticker.evaluation import edits
from minisd.sticker.evaluation.edits import ETAS, is_edit, measure_edits
from minisd.sticker.evaluation.judging import Rate
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene


def picture(colour: str, x: float = 0.75, other: str = "blue", size: int = 64) -> Tensor:
    """An object at the left, and a circle at x."""
    left = Object("star", colour, "medium", 0.25, 0.5, 0.13)
    return render([Scene((left, Object("circle", other, "medium", x, 0.5, 0.13)))], size)[0]


def test_what_counts_as_an_edit() -> None:
    given, prompt = picture("red"), "a green star left of a blue circle"
    assert is_edit(picture("green"), given, prompt, "blue")
    assert is_edit(picture("green", x=0.76), given, prompt, "blue")
    assert not is_edit(picture("red"), given, prompt, "blue")
    assert not is_edit(picture("green", x=0.65), given, prompt, "blue")  # it has moved
    assert not is_edit(picture("green", other="cyan"), given, prompt, "blue")


@pytest.mark.parametrize("good", [ETAS[2:4], ()])
def test_rates(good: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A painter whose edits are good for some eta; every image is trained in a folder of its own."""
    seen: list[tuple[Any, ...]] = []

    def train(sd: Any, given: Tensor, prompt: str, folder: Path, settings: Settings | None) -> str:
        assert given.shape == (1, 3, 64, 64)
        seen.append((folder, settings))
        return prompt

    def draw(sd: Any, prompt: str, etas: tuple[float, ...], seed: int) -> Any:
        drawn = [picture("green" if eta in good else "red") for eta in etas]
        return SimpleNamespace(images=images.to_pil(torch.stack(drawn)))

    monkeypatch.setattr(edits, "training_side", lambda sd: 64)
    monkeypatch.setattr(edits, "train_edit", train)
    monkeypatch.setattr(edits, "draw_edit", draw)
    monkeypatch.setattr(edits, "is_edit", lambda image, given, prompt, other: bool((image[1] > image[0] + 0.5).any()))
    settings = Settings(state_steps=1)
    found = measure_edits(weights_loader.load("sticker"), 3, 5, tmp_path, settings)
    assert found.best == Rate(3 if good else 0, 3)
    assert found.at == {eta: Rate(3 if eta in good else 0, 3) for eta in ETAS}
    assert seen == [(tmp_path / f"00{k}", settings) for k in range(3)]


def test_the_prompt_asks_for_another_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stage of one step on the embedded model: the prompt names a colour that the given image lacks."""
    asked: list[str] = []
    monkeypatch.setattr(edits, "is_edit", lambda image, given, prompt, other: asked.append((prompt, other)) or True)
    sd = weights_loader.load("sticker")
    settings = Settings(state_steps=1, unet_steps=1)
    assert measure_edits(sd, 1, 0, tmp_path, settings).best == Rate(1, 1)
    prompt, other = asked[0]
    assert other in prompt
    assert len(asked) == len(ETAS)
    assert {path.name for path in (tmp_path / "000").glob("*.pt")} == {"states.pt", "unet.pt"}
