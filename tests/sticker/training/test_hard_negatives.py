"""Hard negatives: they are untrue, close to the true caption, and what a caption leaves open makes none."""

import pytest
import torch

from minisd.sticker.training.dataset import training_scenes
from minisd.sticker.training.hard_negatives import (
    NEGATIVES_PER_IMAGE,
    caption_and_negatives,
    compatible,
    hard_negatives,
)
from minisd.sticker.world.captions import Expectation, expectation_of, parse_caption, select_content
from minisd.sticker.world.checker.check import judge
from minisd.sticker.world.checker.recognise import Detection
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene

SCENES = training_scenes(400, seed=5)
Detected = list[tuple[Scene, tuple[Detection, ...], str | None]]


@pytest.fixture(scope="module", params=[60, pytest.param(400, marks=pytest.mark.slow)])
def detected(request: pytest.FixtureRequest) -> Detected:
    """Scenes, and the objects and the background that the checker finds in their images."""
    scenes = SCENES[: request.param]
    found = map(detect_objects, render(scenes, 64))
    return [(scene, tuple(objects), background) for scene, (objects, background) in zip(scenes, found, strict=True)]


def negatives_of(caption: str, seed: int = 0) -> list[Expectation]:
    return hard_negatives(parse_caption(caption), torch.Generator().manual_seed(seed))


def test_no_negative_is_true_of_the_image(detected: Detected) -> None:
    """By the checker, for the rendered image, of which the true caption is exact."""
    generator, tried = torch.Generator().manual_seed(0), 0
    for scene, found, background in detected:
        for wrong in hard_negatives(select_content(scene, generator), generator):
            assert not judge(found, background, wrong).exact, (scene, wrong)
            tried += 1
        caption, untrue = caption_and_negatives(scene, generator)
        assert judge(found, background, parse_caption(caption)).exact, (scene, caption)
        for text in untrue:
            assert not judge(found, background, parse_caption(text)).exact, (scene, caption, text)
    assert tried > 20 * len(detected)


def test_every_caption_has_its_negatives_and_they_differ() -> None:
    generator = torch.Generator().manual_seed(1)
    for scene in training_scenes(500, seed=6):
        caption, untrue = caption_and_negatives(scene, generator, NEGATIVES_PER_IMAGE)
        assert len({caption, *untrue}) == 1 + NEGATIVES_PER_IMAGE, (caption, untrue)


def test_for_two_objects_the_first_negatives_swap_colours_and_relation() -> None:
    generator, words = torch.Generator().manual_seed(2), 0
    colours, relation, *others = negatives_of("a red circle left of a blue square on a white background")
    assert colours == parse_caption("a blue circle left of a red square on a white background")
    assert relation == parse_caption("a red circle right of a blue square on a white background")
    changed = {
        parse_caption(f"a red circle {relation} a blue square on a white background") for relation in ("above", "below")
    }
    changed |= {parse_caption(f"a red circle left of a blue square on a {bg} background") for bg in ("black", "gray")}
    changed |= {parse_caption("a red square left of a blue circle on a white background")}
    changed |= {parse_caption("a red star left of a blue square on a white background")}
    changed |= {parse_caption("a red circle left of a pink square on a white background")}
    assert changed <= set(others)
    assert len(set(others)) == len(others)
    for scene in [scene for scene in SCENES if scene.relation is not None]:
        caption, untrue = caption_and_negatives(scene, generator)
        differences = [len(set(caption.split()) ^ set(text.split())) for text in untrue]
        words += min(differences) == 0  # colours or objects swapped: the same bag of words
    assert words > 100


def test_for_positions_the_swap_is_a_negative() -> None:
    first, second, *_ = negatives_of("a red circle on the left and a blue square at the top")
    assert first == parse_caption("a blue circle on the left and a red square at the top")
    assert second == parse_caption("a red circle at the top and a blue square on the left")


@pytest.mark.parametrize(
    ("caption", "may_be_true"),
    [
        ("a red shape and a blue circle", "a blue shape and a red circle"),  # the shape may be a circle
        ("a red circle and a square", "a circle and a red square"),  # the square may be red, too
        ("a red circle and a shape", "a blue circle and a shape"),  # the shape may be a blue circle
        ("a small star and a star", "a large star and a star"),
        ("a red shape left of a circle", "a shape left of a red circle"),
        ("a red circle and a blue square", "a red circle right of a blue square"),  # the relation is open
        ("a red circle and a blue square", "a blue square and a red circle"),
        ("a red circle left of a blue square", "a blue square right of a red circle"),
        ("a circle", "a red circle"),
        ("two shapes", "two circles"),
        ("a red circle", "a red circle on a black background"),
        ("a shape left of a red shape", "a shape above a shape on a white background"),
    ],
)
def test_what_a_caption_leaves_open_makes_no_negative(caption: str, may_be_true: str) -> None:
    if may_be_true != "a shape above a shape on a white background":
        assert compatible(parse_caption(caption), parse_caption(may_be_true))
        assert compatible(parse_caption(may_be_true), parse_caption(caption))
    assert parse_caption(may_be_true) not in negatives_of(caption)


@pytest.mark.parametrize(
    ("caption", "other"),
    [
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("a red circle left of a blue shape", "a blue circle left of a red shape"),
        ("a red circle left of a blue square", "a blue square left of a red circle"),
        ("a red shape left of a red shape", "a red shape above a red shape"),
        ("two red circles", "three red circles"),
        ("two red circles", "a red circle"),
        ("a circle", "a square"),
        ("a circle at the top", "a circle in the top left"),
        ("a red circle and a blue square", "two circles"),
        ("a star on a white background", "a star on a gray background"),
    ],
)
def test_contradictions_are_not_compatible(caption: str, other: str) -> None:
    assert not compatible(parse_caption(caption), parse_caption(other))
    assert not compatible(parse_caption(other), parse_caption(caption))


def test_compatible_agrees_with_the_checker(detected: Detected) -> None:
    """For images and other images' captions, unless an object is close to a border between positions."""
    generator = torch.Generator().manual_seed(3)
    captions = [parse_caption(caption_and_negatives(scene, generator)[0]) for scene, *_ in detected]
    both = 0
    for scene, found, background in detected:
        shown = expectation_of(scene)
        for content in captions[::4]:
            true, possible = judge(found, background, content).exact, compatible(shown, content)
            assert possible or not true, (scene, content)
            both += true
            if possible and not true:
                assert any(obj.position is None for obj in shown.objects), (scene, content)
    assert both > len(captions[::4])  # more than those images' own captions
