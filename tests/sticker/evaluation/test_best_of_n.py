"""The best of several, with a painter who is sometimes right and a CLIP that knows, or takes the wrong one."""

from types import SimpleNamespace

import pytest
import torch
from support.painter import Painter, as_asked, in_other_colours
from torch import Tensor

from minisd.sticker.evaluation import best_of_n
from minisd.sticker.evaluation.best_of_n import best_of
from minisd.sticker.world.checker.check import check

PROMPTS = ["a red circle", "a blue star", "a green ring"]


def sometimes(asked: SimpleNamespace) -> object:
    """Right for every third seed; never for a ring."""
    right = asked.seed % 3 == 0 and "ring" not in asked.prompt
    return as_asked(asked) if right else in_other_colours(asked)


@pytest.mark.parametrize("sign", [1, -1])
def test_who_knows_chooses_what_is_right(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    def scores(clip: object, tokenizer: object, pixels: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([sign * float(check(each, text).exact) for each, text in zip(pixels, prompts, strict=True)])

    monkeypatch.setattr(best_of_n, "likeness", scores)
    choice = best_of(Painter(sometimes), None, None, PROMPTS, of=4, seed=1)  # pictures 0..11 from seeds 1..12
    assert choice.first == (0, 3)
    assert choice.any == (2, 3)
    assert choice.chosen == ((2, 3) if sign == 1 else (0, 3))
    assert choice.auc == (1.0 if sign == 1 else 0.0)


def test_where_all_are_right_nothing_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_of_n, "likeness", lambda clip, tokenizer, pixels, prompts: torch.rand(len(prompts)))
    choice = best_of(Painter(as_asked), None, None, PROMPTS, of=2, seed=1)
    assert choice.first == choice.chosen == choice.any == (3, 3)
    assert choice.auc == 0.5
