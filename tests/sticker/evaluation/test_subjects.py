"""The measure of DreamBooth, for painters that draw each context, or leave something out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minisd import images
from minisd.sticker.evaluation.judging import Rate
from minisd.sticker.evaluation.subjects import measure_subject
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.scene import Object, Scene
from minisd.sticker.world.subject import Context, Subject, contexts, draw_subject

BESIDE = {"left of": (-0.4, 0), "right of": (0.4, 0), "above": (0, -0.4), "below": (0, 0.4)}


def picture(context: Context, subject: bool) -> Tensor:
    """What a context describes, with or without the subject."""
    x, y = BESIDE.get(str(context.relation), (0, 0))
    things = () if context.other is None else parse_caption(context.other).objects
    objects = tuple(Object(each.shape, each.colour, "medium", 0.5 - x / 2, 0.5 - y / 2, 0.13) for each in things)
    place = Subject(0.5 + x / 2, 0.5 + y / 2, 0.13 if subject else 0.001)
    return draw_subject(Scene(objects, context.background), place, 64)


@pytest.mark.parametrize("subject", [True, False])
def test_each_context_is_judged_by_itself(subject: bool) -> None:
    known, seeds = {each.prompt: each for each in contexts()}, []

    def painter(prompts: list[str], seed: int, num_inference_steps: int | None) -> Any:
        seeds.append(seed)
        assert num_inference_steps == 5
        return SimpleNamespace(images=images.to_pil(torch.stack([picture(known[each], subject) for each in prompts])))

    rate = measure_subject(painter, seed=3, steps=5, repeats=2)  # type: ignore[arg-type]
    assert rate == Rate(100 if subject else 0, 100)
    assert seeds == [3, 19, 35, 51, 67, 83, 99]
