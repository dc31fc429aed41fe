"""The checker knows styles and what is in front of what: all right on our own pictures, never on a wrong caption."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy import ndimage

from minisd.sticker.world.captions import Expectation, caption, expectation, expectation_of
from minisd.sticker.world.checker.check import check, judge
from minisd.sticker.world.checker.recognise import Found
from minisd.sticker.world.checker.segment import find
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS, rgb
from minisd.sticker.world.render import layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE, LAYERS, RELATIONS, SIZES, Scene, Thing
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.styles import STYLES, styles_for

SCENES = [scene_from_seed(seed, two=0.6, several=0.15, styled=0.6, overlapping=0.4) for seed in range(300)]


@cache
def findings() -> list[tuple[tuple[Found, ...], str | None]]:
    return [(tuple(found), background) for found, background in map(find, render(SCENES))]


def counterfactuals(scene: Scene) -> list[Expectation]:
    """Everything about styles and overlaps that the scene is not, and what else a hidden thing might be taken for."""
    whole = expectation_of(scene)
    changed = [replace(whole, relation=name) for name in (*RELATIONS, *LAYERS) if scene.relation not in (None, name)]
    changed += [replace(whole, things=whole.things[::-1])] if scene.relation else []  # the other way round
    changed += [replace(whole, background=name) for name in BACKGROUNDS if name != scene.background]
    for i, thing in enumerate(whole.things):
        others = [replace(thing, style=name) for name in STYLES if name != thing.style]
        others += [replace(thing, shape=name) for name in THINGS if name != thing.shape]
        others += [replace(thing, colour=name) for name in COLOURS if name != thing.colour]
        others += [replace(thing, size=name) for name in SIZES if name != thing.size]
        changed += [replace(whole, things=(*whole.things[:i], o, *whole.things[i + 1 :])) for o in others]
    return changed


def test_all_of_our_own_pictures_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    for scene, (found, background) in zip(SCENES, findings(), strict=True):
        assert judge(found, background, expectation_of(scene)).exact, scene
        words = caption(scene, generator)
        assert judge(found, background, expectation(words)).exact, words


def test_no_counterfactual_is_exact() -> None:
    tried = 0
    for scene, (found, background) in zip(SCENES, findings(), strict=True):
        for wrong in counterfactuals(scene):
            tried += 1
            assert not judge(found, background, wrong).exact, (scene, wrong)
    assert tried > 10000


@pytest.mark.parametrize(("size", "sigma", "noise"), [(64, 0.7, 0), (64, 1.0, 0.04), (64, 0, 0.06), (128, 1.5, 0.04)])
def test_stable_under_blur_and_noise(size: int, sigma: float, noise: float) -> None:
    scenes = SCENES[: 60 if size == 64 else 20]
    pictures = torch.from_numpy(ndimage.gaussian_filter(render(scenes, size).numpy(), (0, 0, sigma, sigma)))
    pictures = pictures + noise * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    for scene, picture in zip(scenes, pictures, strict=True):
        assert check(picture, scene).exact, scene


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_shape_in_every_style(background: str) -> None:
    for size, (low, high) in SIZES.items():
        kinds = [(shape, style) for shape in THINGS for style in ("flat", *styles_for(shape, size))]
        things = [Thing(shape, "blue", size, 0.45, 0.48, (low + high) / 2, style) for shape, style in kinds]
        for thing, picture in zip(things, render([Scene((thing,), background) for thing in things]), strict=True):
            (found,), ground = find(picture)
            assert (found.shape, found.style, found.size, ground) == (thing.shape, thing.style, size, background)


def test_verdict_says_what_is_wrong() -> None:
    behind, front = Thing("square", "blue", "large", 0.4, 0.5, 0.2), Thing("circle", "red", "large", 0.62, 0.5, 0.19)
    layered = render([Scene((behind, front), "gray", overlapping=True)])[0]
    star = render([Scene((Thing("star", "red", "large", 0.5, 0.5, 0.19, "outline"),))])[0]
    assert check(layered, "a red circle in front of a blue square").exact
    assert check(layered, "a blue square behind a red circle").exact
    assert check(star, "an outlined red star").exact
    assert check(star, "a red star").exact  # the style is left open
    wrong = {
        "a blue square in front of a red circle": {"relation"},
        "a blue square left of a red circle": {"relation"},
        "a red circle in front of a blue square sticker": {"style"},
    }
    names = ["object", "shape", "colour", "size", "style", "position", "relation", "count", "background"]
    for prompt, expected in wrong.items():
        verdict = check(layered, prompt)
        assert {name for name in names if not getattr(verdict, name)} == expected, prompt
    verdict = check(star, "a red star sticker")
    assert {name for name in names if not getattr(verdict, name)} == {"style"}


LEVELS = {"white": -1.0, "gray": 1.0, "beige": 1.0, "black": 1.0}


@pytest.mark.parametrize(("background", "level"), LEVELS.items())
@pytest.mark.parametrize("style", ["flat", "sticker"])
def test_whatever_is_neutral_and_of_no_sticker_is_a_stranger(style: str, background: str, level: float) -> None:
    """A block, a frame, a line."""
    plain = render([Scene((Thing("circle", "red", "medium", 0.3, 0.3, 0.13, style),), background)])[0]
    assert check(plain, "a red circle").exact
    block, frame, line = plain.clone(), plain.clone(), plain.clone()
    block[:, 40:50, 40:50] = level
    frame[:, 40:54, 40:54] = level
    frame[:, 42:52, 42:52] = plain[:, 42:52, 42:52]
    line[:, 55:57, 4:60] = level
    for picture in (block, frame, line):
        verdict = check(picture, "a red circle")
        assert not verdict.count
        assert not verdict.exact


@pytest.mark.parametrize(("background", "level"), LEVELS.items())
def test_a_neutral_square_behind_a_thing_is_a_stranger(background: str, level: float) -> None:
    picture = render([Scene((), background)])[0]
    picture[:, 7:32, 7:32] = level
    cover = masks([Scene((Thing("circle", "red", "medium", 0.3, 0.3, 0.18),))])[0, 0]
    picture = torch.lerp(picture, rgb(["red"])[0, :, None, None].expand_as(picture), cover)
    assert not check(picture, "a red circle").exact


@pytest.mark.parametrize("background", ["gray", "beige"])
def test_half_of_a_stickers_trim_makes_no_sticker_and_nothing_flat(background: str) -> None:
    """A border without a shadow, a shadow without a border, and one on the wrong side."""
    scene = Scene((Thing("star", "red", "large", 0.5, 0.5, 0.19, "sticker"),))
    paint, border, shadow = (each[0] for each in layers([scene]))
    ground, red = (rgb([name])[0, :, None, None].expand(3, 64, 64) for name in (background, "red"))

    def drawn(lit: torch.Tensor, dark: torch.Tensor) -> torch.Tensor:
        picture = torch.lerp(ground, -torch.ones_like(ground), dark)
        return torch.lerp(torch.lerp(picture, torch.ones_like(ground), lit), red, paint)

    for lit, dark in ((border, 0 * shadow), (0 * border, shadow), (border, shadow.flip(1, 2))):
        assert not check(drawn(lit, dark), "a red star").exact
        assert not check(drawn(lit, dark), "a red star sticker").exact
    assert check(drawn(border, shadow), "a red star sticker").exact


def test_a_third_thing_does_not_hide_what_overlaps() -> None:
    behind, front = Thing("square", "blue", "large", 0.3, 0.3, 0.18), Thing("circle", "red", "large", 0.5, 0.36, 0.18)
    third = Thing("star", "green", "small", 0.82, 0.84, 0.09)
    picture = render([Scene((behind, front, third), overlapping=True)])[0]
    found, _ = find(picture)
    assert {(each.shape, each.colour, each.hidden > 0.1) for each in found} == {
        ("square", "blue", True), ("circle", "red", False), ("star", "green", False),
    }  # fmt: skip
    verdict = check(picture, "a red circle in front of a blue square")
    assert verdict.object
    assert verdict.relation
    assert not verdict.count


def test_what_hides_a_little_is_neither_beside_nor_in_front() -> None:
    for apart, expected in ((0.27, "in front of"), (0.32, None), (0.40, "right of")):
        centres = {"blue": 0.3, "red": 0.3 + apart}
        things = tuple(Thing("circle", colour, "large", x, 0.5, 0.18) for colour, x in centres.items())
        picture = render([Scene(things, overlapping=True)])[0]
        for relation in (*RELATIONS, *LAYERS):
            verdict = check(picture, f"a red circle {relation} a blue circle")
            assert verdict.relation == (relation == expected), (apart, relation)


@pytest.mark.parametrize("size", [48, 128, 256])
def test_other_sizes(size: int) -> None:
    some = SCENES[: 30 if size < 256 else 6]
    for scene, picture in zip(some, render(some, size), strict=True):
        assert check(picture, scene).exact, scene


def test_front_and_behind_are_each_others_inverse() -> None:
    assert all(INVERSE[INVERSE[name]] == name for name in (*RELATIONS, *LAYERS))
