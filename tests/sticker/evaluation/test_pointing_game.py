"""The pointing game: hits, nouns that do not count, masks, and the embedded model."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import weights_loader
from minisd import images
from minisd.sticker.evaluation.pointing_game import mask_of, play_pointing_game, unique_nouns
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.render import masks, render
from minisd.sticker.world.scene import Object, Scene

CIRCLE = Object("circle", "red", "medium", 0.25, 0.3, 0.13)
SQUARE = Object("square", "blue", "medium", 0.75, 0.7, 0.13)


class Maps:
    """Heat maps (16, 16) with their maximum at given places."""

    def __init__(self, places: dict[str, tuple[int, int]]) -> None:
        self.places = places

    def heat_map(self, word: str, prompt: str, picture: int) -> Tensor:
        heat = torch.zeros(16, 16)
        heat[self.places[word]] = 1
        return heat


@pytest.mark.parametrize(
    ("circle", "square", "right"),
    [((4, 4), (11, 12), 2), ((4, 4), (4, 4), 1), ((11, 12), (4, 4), 0), ((15, 0), (11, 12), 1)],
)
def test_hits(monkeypatch: pytest.MonkeyPatch, circle: tuple[int, int], square: tuple[int, int], right: int) -> None:
    import importlib

    module = importlib.import_module("minisd.sticker.evaluation.pointing_game")

    class Recorded:
        def __init__(self, sd: object) -> None: ...

        def __enter__(self) -> Maps:
            return Maps({"circle": circle, "square": square})

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(module, "record_attention", Recorded)
    drawn = SimpleNamespace(images=images.to_pil(render([Scene((CIRCLE, SQUARE))])))
    score = play_pointing_game(lambda *args, **others: drawn, ["a red circle above a blue square"], 0)  # type: ignore[arg-type]
    assert score.rate == (right, 2)
    assert score.chance == pytest.approx(3.14159 * 0.13**2, rel=0.1)
    other = play_pointing_game(lambda *args, **others: drawn, ["a green circle above a blue square"], 0)  # type: ignore[arg-type]
    assert other.rate.total == 1  # no green circle was drawn


def test_only_nouns_that_name_one_object() -> None:
    assert list(unique_nouns("a red circle above a blue square")) == ["circle", "square"]
    assert list(unique_nouns("a red circle above a blue circle")) == []
    assert list(unique_nouns("a red shape above a star")) == ["star"]
    assert list(unique_nouns("two red circles")) == []


def test_the_mask_of_a_detected_object() -> None:
    image = render([Scene((CIRCLE, SQUARE))])[0]
    (found, other), _ = detect_objects(image)
    mask = mask_of(found, [found, other], 64)
    apart = (image - image[:, :1, :1]).abs().amax(0)
    truth = apart >= 0.5 * apart.max()
    own = truth & (torch.arange(64)[None] < 32) if found.x < 0.5 else truth & (torch.arange(64)[None] >= 32)
    assert (mask & own).sum() > 0.95 * (mask | own).sum()


def test_the_hidden_part_is_not_in_the_mask() -> None:
    scene = Scene((SQUARE, Object("circle", "red", "large", SQUARE.x - 0.2, SQUARE.y - 0.06, 0.18)), overlapping=True)
    found, _ = detect_objects(render([scene])[0])
    true = masks([scene])[0] >= 0.5
    for each in found:
        mask, own = mask_of(each, found, 64), true[0 if each.shape == "square" else 1]
        assert (mask & own).sum() > 0.95 * (mask | own).sum()
    assert sorted(each.hidden > 0.1 for each in found) == [False, True]


def test_the_embedded_model_points_at_its_objects() -> None:
    prompts = [
        "a red circle",
        "a blue square",
        "a green star above a purple triangle",
        "a red circle above a blue star",
    ]
    score = play_pointing_game(weights_loader.load("sticker"), prompts, seed=0)
    assert score.rate.total >= 4
    assert score.rate.value >= 0.8
    assert score.chance < 0.15
