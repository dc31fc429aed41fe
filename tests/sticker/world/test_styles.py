"""Styles: what came late changes no earlier seed; each is drawn as it should be, on every background."""

import hashlib
from itertools import product

import pytest
import torch

from minisd.sticker.world.captions import caption
from minisd.sticker.world.palette import BACKGROUNDS, rgb
from minisd.sticker.world.render import depth, layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import SIZES, Scene, Thing
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.styles import STYLES, styles_for


def digest(what: object) -> str:
    return hashlib.sha256(what.encode() if isinstance(what, str) else repr(what).encode()).hexdigest()[:16]


def test_without_the_new_things_every_seed_is_what_it_was() -> None:
    """Digests from before there were styles and overlaps."""
    scenes = [scene_from_seed(seed) for seed in range(1000)]
    scenes += [scene_from_seed(seed, two=0, several=1) for seed in range(200)]
    kinds = [(s.background, *((thing.shape, thing.colour, thing.size) for thing in s.things)) for s in scenes]
    assert digest(kinds) == "f85c6ea634497a1e"
    places = [[round(v, 6) for t in scene.things for v in (t.x, t.y, t.radius)] for scene in scenes]
    assert digest(places) == "e8a3c88f669008a1"
    generator = torch.Generator().manual_seed(9)
    assert digest("\n".join(caption(scene, generator) for scene in scenes)) == "bad014869334299c"
    assert all(thing.style == "flat" for scene in scenes for thing in scene.things)
    assert not any(scene.overlapping for scene in scenes)


def test_flat_pictures_are_what_they_were_to_the_bit() -> None:
    """Paint over paint, as before; masks are the coverage, and the depth is the nearest thing's."""
    scenes = [scene_from_seed(seed) for seed in range(40)]
    cover = masks(scenes)
    pictures = rgb([scene.background for scene in scenes])[:, :, None, None].repeat(1, 1, 64, 64)
    for k in range(cover.shape[1]):
        names = [(*(thing.colour for thing in scene.things), *[scene.background] * 5)[k] for scene in scenes]
        pictures = torch.lerp(pictures, rgb(names)[:, :, None, None], cover[:, k, None])
    assert torch.equal(render(scenes), pictures)
    assert digest(((pictures + 1) * 127.5).round().byte().numpy().tobytes()) == "5970727f297ca692"
    assert torch.equal(depth(scenes) > 0, cover.amax(1, keepdim=True) > 0)


def drawn(shape: str, style: str, background: str = "white", radius: float = 0.19) -> torch.Tensor:
    return render([Scene((Thing(shape, "red", "large", 0.5, 0.5, radius, style),), background)])[0]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", THINGS)
def test_a_sticker_is_seen_on_every_background(shape: str, background: str) -> None:
    """By a white border three pixels wide, by a shadow below right, or by both."""
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
    paint = masks([Scene((Thing(shape, "red", "large", 0.5, 0.5, 0.19, "sticker"),))])[0, 0]
    assert paint.sum() > 1.4 * masks([Scene((Thing(shape, "red", "large", 0.5, 0.5, 0.19),))])[0, 0].sum()


@pytest.mark.parametrize("shape", [shape for shape in THINGS if "outline" in styles_for(shape, "medium")])
def test_an_outline_is_a_line_with_the_background_inside(shape: str) -> None:
    for radius in (SIZES["medium"][0], SIZES["large"][1]):
        thing = Thing(shape, "red", "large", 0.5, 0.5, radius, "outline")
        line = masks([Scene((thing,))])[0, 0]
        assert line[31:33, 31:33].max() == 0  # at least three pixels of hole
        inside = masks([Scene((Thing(shape, "red", "large", 0.5, 0.5, radius),))])[0, 0]
        assert float(((1 - line) * inside).sum()) > 9
        assert depth([Scene((thing,))])[0, 0, 31:33, 31:33].max() == 0


def test_which_styles_there_are() -> None:
    for shape, size in product(THINGS, SIZES):
        allowed = styles_for(shape, size)
        assert set(allowed) <= set(STYLES) - {"flat"}
        assert ("outline" in allowed) == (shape not in ("circle", "ring") and size != "small")


def test_styled_scenes_fit_and_keep_apart() -> None:
    scenes = [scene_from_seed(seed, two=0.5, several=0.2, styled=0.7) for seed in range(600)]
    styles = [thing.style for scene in scenes for thing in scene.things]
    assert all(styles.count(style) > 60 for style in STYLES)
    for scene in scenes:
        assert len({thing.style for thing in scene.things}) == 1 or not scene.alike
        for thing in scene.things:
            assert thing.style == "flat" or thing.style in styles_for(thing.shape, thing.size)
            if thing.style != "flat":
                left, right, up, down = thing.reach
                assert min(thing.x - left, 1 - thing.x - right, thing.y - up, 1 - thing.y - down) >= 0.0299
    paint, border, shadow = layers(scenes)
    cover = torch.maximum(paint, border)
    assert float(cover.sum(1).max()) <= 1 + 1e-6  # nothing is on anything
    others = cover.sum(1, keepdim=True) - cover
    assert float((shadow * others).max()) == 0  # and no shadow falls on anything
