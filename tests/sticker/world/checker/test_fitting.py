"""Fits find the place of a drawn shape, and only the pixels near the shapes are computed."""

import pytest
import torch

from minisd.sticker.world.checker import fitting
from minisd.sticker.world.checker.fitting import Fit, draw_coverage, fit_shapes
from minisd.sticker.world.render import WHOLE
from minisd.sticker.world.shapes import SHAPES


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize(("style", "place"), [("flat", (0.43, 0.52, 0.15)), ("outline", (0.2, 0.81, 0.19))])
def test_a_fit_returns_to_the_place_and_a_window_changes_nothing(
    style: str, place: tuple[float, float, float], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, start = list(SHAPES), Fit(place[0] + 0.03, place[1] - 0.02, place[2] * 0.9, 0)
    for true in ("heart", "triangle", "diamond"):
        cover = draw_coverage([true], style, torch.tensor([[place]]), size)[0, 0]
        near = fit_shapes(cover, shapes, style, [start] * len(shapes))
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "_window_around", lambda *arguments: WHOLE)
            everywhere = fit_shapes(cover, shapes, style, [start] * len(shapes))
        assert near == [pytest.approx(each, abs=1e-4) for each in everywhere]
        best = max(near, key=lambda fit: fit.iou)
        assert best is near[shapes.index(true)]
        assert best[:3] == pytest.approx(place, abs=0.005)
        assert best.iou > 0.97


def test_a_window_is_a_part_of_the_drawing() -> None:
    places = torch.tensor([[[0.3, 0.4, 0.2], [0.6, 0.5, 0.1]], [[0.5, 0.5, 0.15], [0.2, 0.2, 0.1]]])
    window = slice(10, 40), slice(5, 33)
    whole = draw_coverage(["star", "ring"], "outline", places, 64)
    part = draw_coverage(["star", "ring"], "outline", places, 64, window)
    assert torch.allclose(part, whole[:, :, 10:40, 5:33], atol=1e-4)
