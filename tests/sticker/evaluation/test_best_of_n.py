"""The best of several images, with a painter that is sometimes right and a CLIP that is always right, or wrong."""

from types import SimpleNamespace

import pytest
import torch
from support.painter import Painter, as_requested, in_other_colours
from torch import Tensor

from minisd.sticker.evaluation import best_of_n
from minisd.sticker.evaluation.best_of_n import measure_best_of_n
from minisd.sticker.world.checker.check import check

PROMPTS = ["a red circle", "a blue star", "a green ring"]


def sometimes(request: SimpleNamespace) -> object:
    """Right for every third seed, but never for a ring."""
    right = request.seed % 3 == 0 and "ring" not in request.prompt
    return as_requested(request) if right else in_other_colours(request)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clip_that_is_right_chooses_an_exact_image(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    def scores(clip: object, tokenizer: object, pixels: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([sign * float(check(each, text).exact) for each, text in zip(pixels, prompts, strict=True)])

    monkeypatch.setattr(best_of_n, "clip_scores", scores)
    rates = measure_best_of_n(Painter(sometimes), None, None, PROMPTS, n=4, seed=1)  # seeds 1 to 12
    assert rates.first == (0, 3)
    assert rates.any == (2, 3)
    assert rates.chosen == ((2, 3) if sign == 1 else (0, 3))
    assert rates.auc == (1.0 if sign == 1 else 0.0)


def test_if_all_images_are_exact_the_auc_is_a_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_of_n, "clip_scores", lambda clip, tokenizer, pixels, prompts: torch.rand(len(prompts)))
    rates = measure_best_of_n(Painter(as_requested), None, None, PROMPTS, n=2, seed=1)
    assert rates.first == rates.chosen == rates.any == (3, 3)
    assert rates.auc == 0.5
