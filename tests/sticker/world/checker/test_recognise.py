"""Styles and overlaps: the checker is right on all rendered images, and never for a wrong caption."""

from dataclasses import replace

import pytest
import torch
from scipy import ndimage

from minisd.sticker.world.captions import Expectation, expectation_of, parse_caption, sample_caption
from minisd.sticker.world.checker.check import check, judge
from minisd.sticker.world.checker.recognise import Detection
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS, rgb
from minisd.sticker.world.render import draw_layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import DEPTH_RELATIONS, INVERSE_RELATION, RELATIONS, SIZES, Object, Scene
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.styles import STYLES, styles_for

Detected = tuple[Scene, tuple[Detection, ...], str | None]


def scenes_to(count: int) -> list[Scene]:
    mixture = {"two": 0.6, "several": 0.15, "styled": 0.6, "overlapping": 0.4}
    return [scene_from_seed(seed, **mixture) for seed in range(count)]


@pytest.fixture(scope="module", params=[50, pytest.param(300, marks=pytest.mark.slow)])
def detected(request: pytest.FixtureRequest) -> list[Detected]:
    """Scenes, and the objects and the background that the checker finds in their images."""
    scenes = scenes_to(request.param)
    found = map(detect_objects, render(scenes))
    return [(scene, tuple(objects), background) for scene, (objects, background) in zip(scenes, found, strict=True)]


def counterfactuals(scene: Scene) -> list[Expectation]:
    """Untrue expectations about styles, overlaps and the attributes of a partly hidden object."""
    whole = expectation_of(scene)
    changed = [
        replace(whole, relation=name) for name in (*RELATIONS, *DEPTH_RELATIONS) if scene.relation not in (None, name)
    ]
    changed += [replace(whole, objects=whole.objects[::-1])] if scene.relation else []  # exchanged
    changed += [replace(whole, background=name) for name in BACKGROUNDS if name != scene.background]
    for i, obj in enumerate(whole.objects):
        others = [replace(obj, style=name) for name in STYLES if name != obj.style]
        others += [replace(obj, shape=name) for name in SHAPES if name != obj.shape]
        others += [replace(obj, colour=name) for name in COLOURS if name != obj.colour]
        others += [replace(obj, size=name) for name in SIZES if name != obj.size]
        changed += [replace(whole, objects=(*whole.objects[:i], o, *whole.objects[i + 1 :])) for o in others]
    return changed


def test_all_rendered_images_are_exact(detected: list[Detected]) -> None:
    generator = torch.Generator().manual_seed(0)
    for scene, found, background in detected:
        assert judge(found, background, expectation_of(scene)).exact, scene
        words = sample_caption(scene, generator)
        assert judge(found, background, parse_caption(words)).exact, words


def test_no_counterfactual_is_exact(detected: list[Detected]) -> None:
    tried = 0
    for scene, found, background in detected:
        for wrong in counterfactuals(scene):
            tried += 1
            assert not judge(found, background, wrong).exact, (scene, wrong)
    assert tried > 33 * len(detected)


@pytest.mark.parametrize(("size", "sigma", "noise"), [(64, 0.7, 0), (64, 1.0, 0.04), (64, 0, 0.06), (128, 1.5, 0.04)])
def test_stable_under_blur_and_noise(size: int, sigma: float, noise: float) -> None:
    scenes = scenes_to(20 if size == 64 else 5)
    images = torch.from_numpy(ndimage.gaussian_filter(render(scenes, size).numpy(), (0, 0, sigma, sigma)))
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for scene, picture in zip(scenes, images, strict=True):
        assert check(picture, scene).exact, scene


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_shape_in_every_style(background: str) -> None:
    for size, (low, high) in SIZES.items():
        kinds = [(shape, style) for shape in SHAPES for style in ("flat", *styles_for(shape, size))]
        objects = [Object(shape, "blue", size, 0.45, 0.48, (low + high) / 2, style) for shape, style in kinds]
        for obj, picture in zip(objects, render([Scene((obj,), background) for obj in objects]), strict=True):
            (found,), ground = detect_objects(picture)
            assert (found.shape, found.style, found.size, ground) == (obj.shape, obj.style, size, background)


def test_the_verdict_names_what_is_wrong() -> None:
    behind, front = Object("square", "blue", "large", 0.4, 0.5, 0.2), Object("circle", "red", "large", 0.62, 0.5, 0.19)
    layered = render([Scene((behind, front), "gray", overlapping=True)])[0]
    star = render([Scene((Object("star", "red", "large", 0.5, 0.5, 0.19, "outline"),))])[0]
    assert check(layered, "a red circle in front of a blue square").exact
    assert check(layered, "a blue square behind a red circle").exact
    assert check(star, "an outlined red star").exact
    assert check(star, "a red star").exact  # the style is open
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
def test_a_neutral_region_outside_of_stickers_is_an_unknown_object(style: str, background: str, level: float) -> None:
    """A block, a frame, a line."""
    plain = render([Scene((Object("circle", "red", "medium", 0.3, 0.3, 0.13, style),), background)])[0]
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
def test_a_neutral_square_behind_an_object_is_an_unknown_object(background: str, level: float) -> None:
    picture = render([Scene((), background)])[0]
    picture[:, 7:32, 7:32] = level
    cover = masks([Scene((Object("circle", "red", "medium", 0.3, 0.3, 0.18),))])[0, 0]
    picture = torch.lerp(picture, rgb(["red"])[0, :, None, None].expand_as(picture), cover)
    assert not check(picture, "a red circle").exact


@pytest.mark.parametrize("background", ["gray", "beige"])
def test_an_object_with_a_border_or_a_shadow_alone_is_neither_a_sticker_nor_flat(background: str) -> None:
    """A border without a shadow, a shadow without a border, and one on the wrong side."""
    scene = Scene((Object("star", "red", "large", 0.5, 0.5, 0.19, "sticker"),))
    paint, border, shadow = (each[0] for each in draw_layers([scene]))
    ground, red = (rgb([name])[0, :, None, None].expand(3, 64, 64) for name in (background, "red"))

    def drawn(lit: torch.Tensor, dark: torch.Tensor) -> torch.Tensor:
        picture = torch.lerp(ground, -torch.ones_like(ground), dark)
        return torch.lerp(torch.lerp(picture, torch.ones_like(ground), lit), red, paint)

    for lit, dark in ((border, 0 * shadow), (0 * border, shadow), (border, shadow.flip(1, 2))):
        assert not check(drawn(lit, dark), "a red star").exact
        assert not check(drawn(lit, dark), "a red star sticker").exact
    assert check(drawn(border, shadow), "a red star sticker").exact


def test_a_third_object_does_not_prevent_the_recognition_of_an_overlap() -> None:
    behind, front = Object("square", "blue", "large", 0.3, 0.3, 0.18), Object("circle", "red", "large", 0.5, 0.36, 0.18)
    third = Object("star", "green", "small", 0.82, 0.84, 0.09)
    picture = render([Scene((behind, front, third), overlapping=True)])[0]
    found, _ = detect_objects(picture)
    assert {(each.shape, each.colour, each.hidden > 0.1) for each in found} == {
        ("square", "blue", True), ("circle", "red", False), ("star", "green", False),
    }  # fmt: skip
    verdict = check(picture, "a red circle in front of a blue square")
    assert verdict.object
    assert verdict.relation
    assert not verdict.count


def test_an_object_that_hides_very_little_is_neither_beside_nor_in_front() -> None:
    for apart, expected in ((0.27, "in front of"), (0.32, None), (0.40, "right of")):
        centres = {"blue": 0.3, "red": 0.3 + apart}
        objects = tuple(Object("circle", colour, "large", x, 0.5, 0.18) for colour, x in centres.items())
        picture = render([Scene(objects, overlapping=True)])[0]
        for relation in (*RELATIONS, *DEPTH_RELATIONS):
            verdict = check(picture, f"a red circle {relation} a blue circle")
            assert verdict.relation == (relation == expected), (apart, relation)


@pytest.mark.parametrize("size", [48, 128, 256])
def test_other_sizes(size: int) -> None:
    some = scenes_to(10 if size < 256 else 3)
    for scene, picture in zip(some, render(some, size), strict=True):
        assert check(picture, scene).exact, scene


def test_in_front_of_and_behind_are_inverse() -> None:
    assert all(INVERSE_RELATION[INVERSE_RELATION[name]] == name for name in (*RELATIONS, *DEPTH_RELATIONS))
