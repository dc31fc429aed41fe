"""Pictures: deterministic, anti-aliased, in the right colours at the right places."""

import math
from dataclasses import replace

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.world.palette import rgb
from minisd.sticker.world.render import masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import Scene, Thing
from minisd.sticker.world.shapes import THINGS


def test_deterministic_and_the_same_in_any_batch():
    scenes = [scene_from_seed(seed) for seed in range(70)]
    pictures = render(scenes)
    assert pictures.shape == (70, 3, 64, 64)
    assert pictures.dtype == torch.float32
    assert float(pictures.abs().max()) <= 1
    assert torch.equal(render(scenes), pictures)
    assert torch.allclose(torch.cat([render([scene]) for scene in scenes]), pictures, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", THINGS)
@pytest.mark.parametrize("size", [64, 128])
def test_mask_has_the_area_and_the_centroid_of_its_thing(shape, size):
    cover = masks([Scene((Thing(shape, "red", "large", 0.47, 0.56, 0.19),))], size)[0, 0]
    centres = (torch.arange(size) + 0.5) / size
    assert float(cover.mean()) == pytest.approx(math.pi * 0.19**2, rel=0.01)
    assert float((cover.sum(0) * centres).sum() / cover.sum()) == pytest.approx(0.47, abs=1e-3)
    assert float((cover.sum(1) * centres).sum() / cover.sum()) == pytest.approx(0.56, abs=1e-3)


def test_antialiasing_follows_subpixel_shifts():
    square = [Scene((Thing("square", "red", "large", 0.5 + shift / 64, 0.5, 0.2),)) for shift in (0, 0.25, 0.5)]
    cover = masks(square, 64)[:, 0, 32]
    right = cover[:, 32:].sum(1)
    assert torch.allclose(right - right[0], torch.tensor([0, 0.25, 0.5]), atol=1e-4)
    assert bool(((cover > 0) & (cover < 1)).any())


def test_ring_has_a_hole_triangle_and_heart_point_the_right_way():
    def mask(shape: str) -> torch.Tensor:
        return masks([Scene((Thing(shape, "red", "large", 0.5, 0.5, 0.2),))], 64)[0, 0]

    assert float(mask("ring")[31:33, 31:33].max()) == 0
    for shape, top_is_wider in {"triangle": False, "heart": True}.items():
        widths = mask(shape).sum(1)
        rows = widths.nonzero()[:, 0]
        assert (widths[rows[3]] > widths[rows[-4]]) == top_is_wider


def test_colours_and_order():
    back, front = (
        Thing("square", "blue", "large", 0.5, 0.5, 0.2),
        Thing("circle", "red", "small", 0.5, 0.5, 0.09),
    )
    scenes = [Scene((back, front), "beige"), Scene((back,), "black"), Scene((), "gray")]
    pictures = render(scenes, 64)
    expected = rgb(["beige", "blue", "red", "black", "blue", "gray"])
    measured = [pictures[0, :, 0, 0], pictures[0, :, 32, 22], pictures[0, :, 32, 32], pictures[1, :, 0, 0]]
    measured += [pictures[1, :, 32, 32], pictures[2, :, 32, 32]]
    assert torch.allclose(torch.stack(measured), expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"shape": "blob"}, {"colour": "mauve"}, {"style": "dotted"}])
def test_what_is_not_of_this_world_is_an_error(wrong):
    thing = replace(Thing("square", "blue", "large", 0.5, 0.5, 0.2), **wrong)
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(InputError, match=f"no {name} '{value}'; use one of"):
        render([Scene((thing,))])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(InputError, match="at least one scene"):
        render([])
