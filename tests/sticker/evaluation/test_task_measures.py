"""The measures of variants, on drawings that are right or wrong by construction."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import weights_loader
from minisd.sticker.evaluation.prompt_suites import examples, word
from minisd.sticker.evaluation.tasks import _boxes, _changed, measure_task
from minisd.sticker.world.captions import expectation
from minisd.sticker.world.render import render
from minisd.sticker.world.splits import held_out


class Painter:
    """A pipeline that draws what a function says, from the arguments of a call."""

    def __init__(self, task: str, paint: Callable[..., Tensor]) -> None:
        sticker = weights_loader.load("sticker")
        self.task, self.paint, self.vae, self.defaults = task, paint, sticker.vae, sticker.defaults
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: list[str], **arguments: Any) -> Any:
        self.calls.append({"prompts": prompts, **arguments})
        return SimpleNamespace(images=self.paint(prompts, **arguments))


def test_changed_scenes() -> None:
    for k, example in enumerate(examples("two", 20, 0)):
        other = _changed(example.scene, k, shape=False)
        assert [thing.shape for thing in other.things] == [thing.shape for thing in example.scene.things]
        assert len({thing.colour for thing in other.things}) == 2
        assert not held_out(other)
        assert other == _changed(example.scene, k, shape=False)


def test_boxes() -> None:
    cover = torch.zeros(1, 1, 20, 20)
    cover[0, 0, 8:10, 5:6] = 0.5
    box = _boxes(cover)
    assert box.sum() == 8 * 7
    assert box[0, 0, 5, 2] == box[0, 0, 12, 8] == 1


def test_inpainting_that_puts_the_right_thing_in_and_that_does_nothing() -> None:
    chosen = examples("single", 4, 0, weights_loader.load("sticker").defaults.words)
    others = [_changed(each.scene, k, shape=True) for k, each in enumerate(chosen)]
    right = measure_task(Painter("inpainting", lambda prompts, **given: render(others)), 4, 0)
    assert right["exact"]["rate"] == 1
    assert right["outside"] == pytest.approx(100)
    assert 20 < right["outside by the autoencoder"] < 95  # 100 would be no difference at all
    lazy = measure_task(Painter("inpainting", lambda prompts, image, **given: image), 4, 0)
    assert lazy["exact"]["rate"] < 1
    assert lazy["outside"] == pytest.approx(100)
    painter = Painter("inpainting", lambda prompts, **given: -torch.ones(4, 3, 64, 64))
    assert measure_task(painter, 4, 0)["outside"] < 10
    for prompt, other in zip(painter.calls[0]["prompts"], others, strict=True):
        assert expectation(prompt).things[0].shape == other.things[0].shape
        assert expectation(prompt).background == other.background


def test_structure_that_is_kept_and_that_is_not() -> None:
    chosen = examples("two", 4, 0, weights_loader.load("sticker").defaults.words)
    others = [_changed(each.scene, k, shape=False) for k, each in enumerate(chosen)]
    right = measure_task(Painter("depth", lambda prompts, **given: render(others)), 4, 0)
    assert right["iou"] > 0.98
    assert right["colour"]["rate"] == right["exact"]["rate"] == 1
    old = measure_task(Painter("depth", lambda prompts, **given: render([each.scene for each in chosen])), 4, 0)
    assert old["colour"]["rate"] < 0.5
    empty = measure_task(Painter("depth", lambda prompts, **given: -torch.ones(4, 3, 64, 64)), 4, 0)
    assert empty["iou"] < 0.3


def test_upscaling_beside_bicubic() -> None:
    chosen = examples("two", 4, 0, weights_loader.load("sticker").defaults.words)
    painter = Painter("upscaling", lambda prompts, **given: render([each.scene for each in chosen]))
    right = measure_task(painter, 4, 0)
    assert right["psnr"] == pytest.approx(100)
    assert 15 < right["bicubic psnr"] < 35
    assert right["exact"]["rate"] == 1
    assert painter.calls[0]["image"].shape == (4, 3, 16, 16)


def test_prompts_of_sizes_are_not_asked() -> None:
    scene = examples("single", 1, 0)[0].scene
    assert expectation(word(scene, "shape colour background", torch.Generator())).things[0].size is None
