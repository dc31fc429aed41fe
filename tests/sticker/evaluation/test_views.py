"""Measures of turned images, large images and loops, for painters that are right, or wrong, on purpose."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import weights_loader
from minisd import images
from minisd.pipeline import View
from minisd.sticker.evaluation.judging import Rate
from minisd.sticker.evaluation.views import ANAGRAMS, measure_anagram, measure_canvas, measure_loop
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene


def picture(prompt: str, x: float = 0.5, y: float = 0.5) -> Tensor:
    """An image of one object, or of two beside each other."""
    objects = parse_caption(prompt).objects
    places = [(x, y)] if len(objects) == 1 else [(0.25, 0.5), (0.75, 0.5)]
    drawn = (Object(obj.shape, obj.colour, "small", *place, 0.09) for obj, place in zip(objects, places, strict=True))
    return render([Scene(tuple(drawn))])[0]


class ViewPainter:
    """Draws the first view only, or each view (or `always`) in its window; a loop of images that become pale."""

    vae = SimpleNamespace(config=SimpleNamespace(sample_size=64, latent_channels=4))
    unet = SimpleNamespace(config=SimpleNamespace(cells=(16, 16)))

    def __init__(self, always: str | None = None) -> None:
        self.always, self.seeds = always, []

    def __call__(self, prompt: str = "", views: Any = None, latents: Any = None, **settings: Any) -> Any:
        count = settings.get("num_images_per_prompt", 1)
        self.seeds.append(settings.get("seed"))
        if latents is not None:
            assert latents.shape == (count, 4, 16, 16)
            return SimpleNamespace(images=torch.stack([picture(prompt) * (1 - 0.01 * k) for k in range(count)]))
        if views[0].width is None:
            return SimpleNamespace(images=images.to_pil(torch.stack([picture(views[0].prompt)] * count)))
        canvas = torch.ones(3, max(v.top + v.height for v in views), max(v.left + v.width for v in views))
        for view in views:
            part = canvas[:, view.top : view.top + 64, view.left : view.left + 64]
            part.copy_(torch.minimum(part, picture(self.always or view.prompt)))
        return SimpleNamespace(images=canvas[None])


def test_a_turned_image_is_right_if_it_is_exact_both_ways() -> None:
    painter = ViewPainter()
    both = "a blue square left of a red circle", "half", "a red circle left of a blue square"
    assert measure_anagram(painter, *both, count=20, seed=7) == Rate(20, 20)  # type: ignore[arg-type]
    assert painter.seeds == [7, 23]
    assert measure_anagram(painter, "a red circle", "half", "a blue circle", 3, 0) == Rate(0, 3)  # type: ignore[arg-type]
    assert measure_anagram(painter, "a red heart", "flip", "a red heart", 1, 0) == Rate(0, 1)  # type: ignore[arg-type]
    assert all(View(prompt) and View(turned, turn=turn) for prompt, turn, turned in ANAGRAMS)


@pytest.mark.parametrize(("always", "right"), [(None, 12), ("a red star", 1), ("a pink star", 0)])
def test_a_window_shows_its_prompt_near_its_centre(always: str | None, right: int) -> None:
    prompts = [
        f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("star", "ring", "cross", "heart")
    ]
    painter = ViewPainter(always)
    assert measure_canvas(painter, prompts, 3, 2, seed=5) == Rate(right, 12)  # type: ignore[arg-type]
    assert painter.seeds == [5, 11]


def test_a_loop_s_frames_are_compared_with_their_neighbours_and_the_opposite() -> None:
    loop = measure_loop(ViewPainter(), 8, seed=0)  # type: ignore[arg-type]
    assert loop.exact == Rate(8, 8)
    assert loop.largest_step == pytest.approx(7 * loop.apart / 4, rel=1e-4)  # from the last frame to the first
    assert loop.step == pytest.approx((7 + 7) / 8 * loop.apart / 4, rel=1e-4)


def test_the_embedded_model_s_loop_closes() -> None:
    loop = measure_loop(weights_loader.load("sticker"), 6, seed=1, steps=4)
    assert 0 < loop.step <= loop.largest_step < loop.apart
