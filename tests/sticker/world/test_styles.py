"""Styles: they change no earlier seed, and each is rendered correctly on every background."""

import hashlib
from itertools import product

import pytest
import torch

from minisd.sticker.world.captions import sample_caption
from minisd.sticker.world.palette import BACKGROUNDS, rgb
from minisd.sticker.world.render import depth, draw_layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import SIZES, Object, Scene
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.styles import STYLES, styles_for


def digest(what: object) -> str:
    return hashlib.sha256(what.encode() if isinstance(what, str) else repr(what).encode()).hexdigest()[:16]


def test_without_styles_and_overlaps_every_seed_gives_the_same_scene_as_before() -> None:
    """The digests are from before styles and overlaps were added."""
    scenes = [scene_from_seed(seed) for seed in range(1000)]
    scenes += [scene_from_seed(seed, two=0, several=1) for seed in range(200)]
    kinds = [(s.background, *((obj.shape, obj.colour, obj.size) for obj in s.objects)) for s in scenes]
    assert digest(kinds) == "f85c6ea634497a1e"
    places = [[round(v, 6) for t in scene.objects for v in (t.x, t.y, t.radius)] for scene in scenes]
    assert digest(places) == "e8a3c88f669008a1"
    generator = torch.Generator().manual_seed(9)
    assert digest("\n".join(sample_caption(scene, generator) for scene in scenes)) == "bad014869334299c"
    assert all(obj.style == "flat" for scene in scenes for obj in scene.objects)
    assert not any(scene.overlapping for scene in scenes)


def test_flat_images_are_the_same_as_before_bit_for_bit() -> None:
    """Later objects are painted over earlier ones, masks are the coverage, and depth maps that of the front object."""
    scenes = [scene_from_seed(seed) for seed in range(40)]
    cover = masks(scenes)
    images = rgb([scene.background for scene in scenes])[:, :, None, None].repeat(1, 1, 64, 64)
    for k in range(cover.shape[1]):
        names = [(*(obj.colour for obj in scene.objects), *[scene.background] * 5)[k] for scene in scenes]
        images = torch.lerp(images, rgb(names)[:, :, None, None], cover[:, k, None])
    assert torch.equal(render(scenes), images)
    assert digest(((images + 1) * 127.5).round().byte().numpy().tobytes()) == "5970727f297ca692"
    assert torch.equal(depth(scenes) > 0, cover.amax(1, keepdim=True) > 0)


def drawn(shape: str, style: str, background: str = "white", radius: float = 0.19) -> torch.Tensor:
    return render([Scene((Object(shape, "red", "large", 0.5, 0.5, radius, style),), background)])[0]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sticker_is_visible_on_every_background(shape: str, background: str) -> None:
    """By a white border three pixels wide, by a shadow to the lower right, or by both."""
    flat, sticker = drawn(shape, "flat", background), drawn(shape, "sticker", background)
    changed = (sticker - flat).norm(dim=0) > 0.3
    assert changed.sum() > 100
    white = (sticker > 0.99).all(0) & ~(flat > 0.99).all(0)
    assert (white.sum() > 150) == (background != "white")
    darker = sticker.mean(0) < flat.mean(0) - 0.2
    rows, columns = darker.nonzero().T
    if background != "black":
        assert darker.sum() > 60
        assert rows.float().mean() > 33
        assert columns.float().mean() > 33
    paint = masks([Scene((Object(shape, "red", "large", 0.5, 0.5, 0.19, "sticker"),))])[0, 0]
    assert paint.sum() > 1.4 * masks([Scene((Object(shape, "red", "large", 0.5, 0.5, 0.19),))])[0, 0].sum()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "outline" in styles_for(shape, "medium")])
def test_an_outline_is_a_line_with_the_background_inside(shape: str) -> None:
    for radius in (SIZES["medium"][0], SIZES["large"][1]):
        obj = Object(shape, "red", "large", 0.5, 0.5, radius, "outline")
        line = masks([Scene((obj,))])[0, 0]
        assert line[31:33, 31:33].max() == 0  # at least three pixels of hole
        inside = masks([Scene((Object(shape, "red", "large", 0.5, 0.5, radius),))])[0, 0]
        assert float(((1 - line) * inside).sum()) > 9
        assert depth([Scene((obj,))])[0, 0, 31:33, 31:33].max() == 0


def test_the_styles_of_each_shape_and_size() -> None:
    for shape, size in product(SHAPES, SIZES):
        allowed = styles_for(shape, size)
        assert set(allowed) <= set(STYLES) - {"flat"}
        assert ("outline" in allowed) == (shape not in ("circle", "ring") and size != "small")


def test_styled_scenes_fit_and_keep_apart() -> None:
    scenes = [scene_from_seed(seed, two=0.5, several=0.2, styled=0.7) for seed in range(600)]
    styles = [obj.style for scene in scenes for obj in scene.objects]
    assert all(styles.count(style) > 60 for style in STYLES)
    for scene in scenes:
        assert len({obj.style for obj in scene.objects}) == 1 or not scene.alike
        for obj in scene.objects:
            assert obj.style == "flat" or obj.style in styles_for(obj.shape, obj.size)
            if obj.style != "flat":
                left, right, up, down = obj.extent
                assert min(obj.x - left, 1 - obj.x - right, obj.y - up, 1 - obj.y - down) >= 0.0299
    paint, border, shadow = draw_layers(scenes)
    cover = torch.maximum(paint, border)
    assert float(cover.sum(1).max()) <= 1 + 1e-6  # no object overlaps another
    others = cover.sum(1, keepdim=True) - cover
    assert float((shadow * others).max()) == 0  # and no shadow overlaps an object
