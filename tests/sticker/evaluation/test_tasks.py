"""The measures of the task variants, for images that are right or wrong by construction."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import weights_loader
from minisd.sticker.evaluation.prompt_suites import suite_examples, write_prompt
from minisd.sticker.evaluation.tasks import _boxes, _changed, measure_task
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.render import render
from minisd.sticker.world.splits import held_out

SIDE = weights_loader.load("sticker").vae.config.sample_size


class Painter:
    """A pipeline whose images are those of a function of its arguments."""

    def __init__(self, task: str, paint: Callable[..., Tensor]) -> None:
        sticker = weights_loader.load("sticker")
        self.task, self.paint, self.defaults = task, paint, sticker.defaults
        self.vae, self.unet = sticker.vae, sticker.unet
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: list[str], **arguments: Any) -> Any:
        self.calls.append({"prompts": prompts, **arguments})
        return SimpleNamespace(images=self.paint(prompts, **arguments))


def test_changed_scenes() -> None:
    for k, example in enumerate(suite_examples("two", 20, 0)):
        other = _changed(example.scene, k, shape=False)
        assert [obj.shape for obj in other.objects] == [obj.shape for obj in example.scene.objects]
        assert len({obj.colour for obj in other.objects}) == 2
        assert not held_out(other)
        assert other == _changed(example.scene, k, shape=False)


def test_boxes() -> None:
    cover = torch.zeros(1, 1, 64, 64)
    cover[0, 0, 8:10, 5:6] = 0.5
    box = _boxes(cover)
    assert box.sum() == 8 * 7
    assert box[0, 0, 5, 2] == box[0, 0, 12, 8] == 1


def test_inpainting_that_is_right_and_that_does_nothing() -> None:
    chosen = suite_examples("single", 4, 0, weights_loader.load("sticker").defaults.words)
    others = [_changed(each.scene, k, shape=True) for k, each in enumerate(chosen)]
    right = measure_task(Painter("inpainting", lambda prompts, **given: render(others, SIDE)), 4, 0)
    assert right["exact"]["rate"] == 1
    assert right["outside"] == pytest.approx(100)
    assert 20 < right["outside by the autoencoder"] < 95  # 100 would be no difference
    lazy = measure_task(Painter("inpainting", lambda prompts, image, **given: image), 4, 0)
    assert lazy["exact"]["rate"] < 1
    assert lazy["outside"] == pytest.approx(100)
    painter = Painter("inpainting", lambda prompts, **given: -torch.ones(4, 3, SIDE, SIDE))
    assert measure_task(painter, 4, 0)["outside"] < 10
    for prompt, other in zip(painter.calls[0]["prompts"], others, strict=True):
        assert parse_caption(prompt).objects[0].shape == other.objects[0].shape
        assert parse_caption(prompt).background == other.background


def test_a_structure_that_is_kept_and_one_that_is_not() -> None:
    chosen = suite_examples("two", 4, 0, weights_loader.load("sticker").defaults.words)
    others = [_changed(each.scene, k, shape=False) for k, each in enumerate(chosen)]
    right = measure_task(Painter("depth", lambda prompts, **given: render(others, SIDE)), 4, 0)
    assert right["iou"] > 0.98
    assert right["colour"]["rate"] == right["exact"]["rate"] == 1
    old = measure_task(Painter("depth", lambda prompts, **given: render([each.scene for each in chosen], SIDE)), 4, 0)
    assert old["colour"]["rate"] < 0.5
    empty = measure_task(Painter("depth", lambda prompts, **given: -torch.ones(4, 3, SIDE, SIDE)), 4, 0)
    assert empty["iou"] < 0.3


def test_upscaling_and_bicubic_interpolation() -> None:
    chosen = suite_examples("two", 4, 0, weights_loader.load("sticker").defaults.words)
    painter = Painter("upscaling", lambda prompts, **given: render([each.scene for each in chosen], SIDE))
    right = measure_task(painter, 4, 0)
    assert right["psnr"] == pytest.approx(100)
    assert 15 < right["bicubic psnr"] < 35
    assert right["exact"]["rate"] == 1
    assert painter.calls[0]["image"].shape == (4, 3, 16, 16)


def test_prompts_do_not_mention_sizes_unless_chosen() -> None:
    scene = suite_examples("single", 1, 0)[0].scene
    assert parse_caption(write_prompt(scene, "shape colour background", torch.Generator())).objects[0].size is None
