"""Rendered images: deterministic, anti-aliased, with the right colours at the right positions."""

import math
from dataclasses import replace

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.palette import rgb
from minisd.sticker.world.render import draw_edges, draw_layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import Object, Scene
from minisd.sticker.world.shapes import SHAPES


def test_deterministic_and_the_same_in_any_batch():
    scenes = [scene_from_seed(seed) for seed in range(70)]
    images = render(scenes)
    assert images.shape == (70, 3, 64, 64)
    assert images.dtype == torch.float32
    assert float(images.abs().max()) <= 1
    assert torch.equal(render(scenes), images)
    assert torch.allclose(torch.cat([render([scene]) for scene in scenes]), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 128])
def test_a_mask_has_the_area_and_the_centroid_of_its_object(shape, size):
    cover = masks([Scene((Object(shape, "red", "large", 0.47, 0.56, 0.19),))], size)[0, 0]
    centres = (torch.arange(size) + 0.5) / size
    assert float(cover.mean()) == pytest.approx(math.pi * 0.19**2, rel=0.01)
    assert float((cover.sum(0) * centres).sum() / cover.sum()) == pytest.approx(0.47, abs=1e-3)
    assert float((cover.sum(1) * centres).sum() / cover.sum()) == pytest.approx(0.56, abs=1e-3)


def test_antialiasing_follows_subpixel_shifts():
    square = [Scene((Object("square", "red", "large", 0.5 + shift / 64, 0.5, 0.2),)) for shift in (0, 0.25, 0.5)]
    cover = masks(square, 64)[:, 0, 32]
    right = cover[:, 32:].sum(1)
    assert torch.allclose(right - right[0], torch.tensor([0, 0.25, 0.5]), atol=1e-4)
    assert bool(((cover > 0) & (cover < 1)).any())


def test_ring_has_a_hole_triangle_and_heart_point_the_right_way():
    def mask(shape: str) -> torch.Tensor:
        return masks([Scene((Object(shape, "red", "large", 0.5, 0.5, 0.2),))], 64)[0, 0]

    assert float(mask("ring")[31:33, 31:33].max()) == 0
    for shape, top_is_wider in {"triangle": False, "heart": True}.items():
        widths = mask(shape).sum(1)
        rows = widths.nonzero()[:, 0]
        assert (widths[rows[3]] > widths[rows[-4]]) == top_is_wider


def test_colours_and_order():
    back, front = (
        Object("square", "blue", "large", 0.5, 0.5, 0.2),
        Object("circle", "red", "small", 0.5, 0.5, 0.09),
    )
    scenes = [Scene((back, front), "beige"), Scene((back,), "black"), Scene((), "gray")]
    images = render(scenes, 64)
    expected = rgb(["beige", "blue", "red", "black", "blue", "gray"])
    measured = [images[0, :, 0, 0], images[0, :, 32, 22], images[0, :, 32, 32], images[1, :, 0, 0]]
    measured += [images[1, :, 32, 32], images[2, :, 32, 32]]
    assert torch.allclose(torch.stack(measured), expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"shape": "blob"}, {"colour": "mauve"}, {"style": "dotted"}])
def test_unknown_shapes_colours_and_styles_are_errors(wrong):
    obj = replace(Object("square", "blue", "large", 0.5, 0.5, 0.2), **wrong)
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(InputError, match=f"no {name} '{value}'; use one of"):
        render([Scene((obj,))])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(InputError, match="at least one scene"):
        render([])


def one(colour: str, background: str = "white", style: str = "flat") -> Scene:
    return Scene((Object("square", colour, "large", 0.5, 0.5, 0.2, style),), background)


def test_pale_objects_on_white_have_a_thin_gray_edge() -> None:
    scene = one("yellow")
    edge, paint = draw_edges([scene], 128)[0, 0, 64], masks([scene], 128)[0, 0, 64]
    assert float(edge.sum()) == pytest.approx(2, abs=1e-4)  # one pixel wide, on each side
    assert (edge <= paint).all()  # inside the object
    white, yellow = torch.ones(3, 1), rgb(["yellow"]).T
    expected = (1 - edge) * (paint * yellow + (1 - paint) * white)  # gray is 0
    assert torch.allclose(render([scene], 128)[0, :, 64], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("scene", "size"),
    [(one("blue"), 128), (one("yellow", "black"), 128), (one("yellow", style="sticker"), 128), (one("yellow"), 64)],
)
def test_other_objects_have_no_edge(scene: Scene, size: int) -> None:
    assert not draw_edges([scene], size).any()


def test_no_edge_where_a_pale_object_is_in_front_of_another_one() -> None:
    rear = Object("square", "blue", "large", 0.4, 0.5, 0.2)
    scene = Scene((rear, replace(rear, colour="yellow", x=0.7)), overlapping=True)
    seam, paint = slice(60, 75), draw_layers([scene], 128).paint[0, 1, 64]
    expected = torch.lerp(rgb(["blue"]).T, rgb(["yellow"]).T, paint)
    assert torch.allclose(render([scene], 128)[0, :, 64, seam], expected[:, seam], atol=1e-6)
    assert not torch.allclose(render([scene], 128)[0, :, 64, 75:115], expected[:, 75:115], atol=0.1)


@pytest.mark.parametrize("count", [30, pytest.param(400, marks=pytest.mark.slow)])
def test_the_checker_finds_the_objects_with_their_edges(count: int) -> None:
    pale = (s for s in map(scene_from_seed, range(10_000)) if draw_edges([s], 128).any())
    scenes = [next(pale) for _ in range(count)]
    assert all(check(image, scene).exact for image, scene in zip(render(scenes, 128), scenes, strict=True))
