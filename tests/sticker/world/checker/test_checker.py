"""The checker is exact: right on all rendered images, also blurred and noisy ones, and never for a wrong caption."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from minisd.errors import InputError
from minisd.sticker.world.captions import Expectation, expectation_of, parse_caption, sample_caption
from minisd.sticker.world.checker.check import check, judge
from minisd.sticker.world.checker.recognise import Detection
from minisd.sticker.world.checker.regions import components
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import RELATIONS, SIZES, Object, Scene
from minisd.sticker.world.shapes import SHAPES

SCENES = [scene_from_seed(seed) for seed in range(200)]
Detected = tuple[Scene, tuple[Detection, ...], str | None]


@pytest.fixture(scope="module", params=[120, pytest.param(1000, marks=pytest.mark.slow)])
def detected(request: pytest.FixtureRequest) -> list[Detected]:
    """Scenes, and the objects and the background that the checker finds in their images."""
    scenes = [scene_from_seed(seed) for seed in range(request.param)]
    scenes += [scene_from_seed(seed, two=0, several=1) for seed in range(request.param // 10)]
    found = map(detect_objects, render(scenes))
    return [(scene, tuple(objects), background) for scene, (objects, background) in zip(scenes, found, strict=True)]


def counterfactuals(scene: Scene) -> list[Expectation]:
    """All untrue expectations one change away from the scene."""
    whole = expectation_of(scene)
    changed = [replace(whole, background=name) for name in BACKGROUNDS if name != scene.background]
    changed += [replace(whole, relation=name) for name in RELATIONS if scene.relation not in (None, name)]
    changed += [replace(whole, objects=(*whole.objects, whole.objects[0]))]
    if len(whole.objects) > 2:
        changed += [replace(whole, objects=whole.objects[:-1])]
    for i, obj in enumerate(whole.objects):
        others = [replace(obj, shape=name) for name in SHAPES if name != obj.shape]
        others += [replace(obj, colour=name) for name in COLOURS if name != obj.colour]
        others += [replace(obj, size=name) for name in SIZES if name != obj.size]
        changed += [replace(whole, objects=(*whole.objects[:i], o, *whole.objects[i + 1 :])) for o in others]
    if len(whole.objects) == 2:
        changed.append(replace(whole, objects=whole.objects[:1], relation=None))
        a, b = whole.objects
        if a.colour != b.colour:  # wrong binding: the colours are exchanged
            changed.append(replace(whole, objects=(replace(a, colour=b.colour), replace(b, colour=a.colour))))
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
    assert tried > 18 * len(detected)


def test_centres_and_areas_are_measured_to_a_twentieth_of_a_pixel(detected: list[Detected]) -> None:
    for scene, found, _ in detected:
        for obj in scene.objects:
            nearest = min(found, key=lambda f: abs(f.x - obj.x) + abs(f.y - obj.y))
            assert nearest.x == pytest.approx(obj.x, abs=0.1 / 64)
            assert nearest.y == pytest.approx(obj.y, abs=0.1 / 64)
            assert (nearest.area / torch.pi) ** 0.5 == pytest.approx(obj.radius, abs=0.2 / 64)


def soft(images: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


@pytest.mark.parametrize(
    ("size", "sigma", "noise"), [(64, 0.7, 0), (64, 1.0, 0.04), (64, 0, 0.06), (128, 1.5, 0.04), (256, 3, 0.08)]
)
def test_stable_under_blur_and_noise(size, sigma, noise):
    scenes = SCENES[: 40 if size == 64 else 10]
    images = soft(render(scenes, size), sigma)
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for scene, picture in zip(scenes, images, strict=True):
        assert check(picture, scene).exact, scene


def test_a_larger_image_is_judged_as_if_it_were_reduced():
    """Tolerances hold for one size: seams that are round by a pixel of 128 are no more wrong than at 64."""
    rear, front = Object("circle", "red", "large", 0.42, 0.5, 0.18), Object("square", "blue", "large", 0.62, 0.5, 0.18)
    scene = Scene((rear, front))
    large = soft(render([scene], 128), 1.0)
    reduced = F.interpolate(large, size=(64, 64), mode="area")
    assert detect_objects(large[0]) == detect_objects(reduced[0])
    assert check(large[0], "a red circle behind a blue square").exact


def test_the_verdict_names_what_is_wrong():
    scene = Scene(
        (Object("circle", "red", "medium", 0.4, 0.25, 0.13), Object("square", "blue", "medium", 0.5, 0.7, 0.13))
    )
    picture = render([scene])[0]
    assert check(picture, "a red circle above a blue square").exact
    wrong = {
        "a red circle below a blue square": {"relation"},
        "a blue circle above a red square": {"object", "colour"},
        "a red star above a blue square": {"object", "shape"},
        "a red circle": {"count"},
        "a small red circle above a blue square": {"size"},
        "a red circle above a blue square on a black background": {"background"},
    }
    names = ["object", "shape", "colour", "size", "position", "relation", "count", "background"]
    for prompt, expected in wrong.items():
        verdict = check(picture, prompt)
        if prompt.startswith("a blue circle"):  # either the colours or the relation are wrong, not both
            assert not verdict.exact
            assert not verdict.object
        else:
            assert {name for name in names if not getattr(verdict, name)} == expected, prompt


def test_touching_objects_are_separated_and_unknown_objects_have_no_name():
    touching = Scene(
        (Object("square", "red", "large", 0.34, 0.5, 0.18), Object("square", "blue", "large", 0.66, 0.5, 0.18))
    )
    assert check(render([touching])[0], "a red square left of a blue square").exact
    picture = render([Scene(())])[0]
    assert check(picture, "a red circle").found == ()
    picture[:, 20:28, 5:60] = torch.tensor([-0.2, -0.6, -1.0])[:, None, None]  # a long brown bar
    (unknown,), background = detect_objects(picture)
    assert (unknown.shape, unknown.colour, background) == (None, None, "white")
    assert not check(picture, "a shape").count


@pytest.mark.parametrize("sigma", [0, 1, 2, 4])
def test_noise_is_never_exact(sigma):
    noise = soft(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(sigma)), sigma)[0]
    noise = noise / noise.std()
    assert not check(noise, "a red circle").exact
    assert not check(noise, "a red circle above a blue square").exact
    assert not check(noise, "five small red circles").exact


def test_pil_and_tensor_agree():
    scene = SCENES[3]
    picture = render([scene])[0]
    pil = Image.fromarray(((picture.permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8))
    assert check(pil, scene).exact
    assert [f.shape for f in check(pil, scene).found] == [f.shape for f in check(picture, scene).found]


def test_components_against_scipy():
    generator = torch.Generator().manual_seed(0)
    for density in (0.0, 0.2, 0.4, 0.6, 1.0):
        mask = torch.rand(40, 56, generator=generator) < density
        labels, (expected, count) = components(mask), ndimage.label(mask.numpy(), np.ones((3, 3)))
        assert int(labels.max()) == count
        pairs = {(int(a), int(b)) for a, b in zip(labels.flatten(), expected.flatten(), strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 32), (3, 8, 8), (1, 3, 64, 64)])
def test_wrong_shapes_are_errors(shape):
    with pytest.raises(InputError, match="shape"):
        check(torch.zeros(shape), "a red circle")


def test_nan_is_an_error():
    with pytest.raises(InputError, match="NaN"):
        check(torch.full((3, 64, 64), float("nan")), "a red circle")
