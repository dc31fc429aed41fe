"""Captions of objects in a style, and of overlapping ones: parsed as they are written."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.training.hard_negatives import compatible, hard_negatives
from minisd.sticker.world.captions import (
    Expectation,
    ObjectExpectation,
    expectation_of,
    noun_indices,
    parse_caption,
    sample_caption,
    select_content,
    write_caption,
)
from minisd.sticker.world.checker.check import judge
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.nouns import STYLE_VOCABULARY
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE_RELATION, RELATIONS

SCENES = [scene_from_seed(seed, two=0.6, several=0.2, styled=0.7, overlapping=0.4) for seed in range(1500)]
STAR = ObjectExpectation("star", "red")


@pytest.mark.parametrize(
    ("prompt", "obj"),
    [
        ("an outlined red star", replace(STAR, style="outline")),
        ("a red star outline", replace(STAR, style="outline")),
        ("a large outlined star", ObjectExpectation("star", None, "large", None, "outline")),
        ("the small red star sticker", replace(STAR, size="small", style="sticker")),
        ("a red star decal", replace(STAR, style="sticker")),
        ("a shape sticker at the top", ObjectExpectation(None, None, None, ("top", "middle"), "sticker")),
    ],
)
def test_parsing_a_style(prompt: str, obj: ObjectExpectation) -> None:
    assert parse_caption(prompt) == Expectation((obj,))


@pytest.mark.parametrize("prompt", ["two outlined red stars", "two red star outlines"])
def test_parsing_several_in_a_style(prompt: str) -> None:
    assert parse_caption(prompt) == Expectation((replace(STAR, style="outline"),) * 2)


@pytest.mark.parametrize("prompt", ["an outlined star sticker", "two star sticker", "a sticker", "two outlined star"])
def test_phrases_outside_the_grammar_are_errors(prompt: str) -> None:
    with pytest.raises(InputError, match="cannot read"):
        parse_caption(prompt)


def test_captions_parse_back_to_their_content() -> None:
    generator, words, mentioned, named = torch.Generator().manual_seed(0), Counter(), 0, 0
    for scene in SCENES:
        content, whole = select_content(scene, generator), expectation_of(scene)
        styled = [obj for obj in scene.objects if obj.style != "flat"][: 1 if scene.alike else 2]
        mentioned += len(styled)
        named += sum(obj.style is not None for obj in (content.objects[:1] if scene.alike else content.objects))
        assert all(a.style in (None, b.style) for a, b in zip(content.objects, whole.objects, strict=True))
        text = write_caption(content, generator)
        words.update(text.split())
        read, open_objects = parse_caption(text), tuple(replace(obj, position=None) for obj in content.objects)
        objects = tuple(replace(obj, position=None) for obj in read.objects)
        assert objects in (open_objects, open_objects[::-1])
        if read.relation is not None:
            straight = objects == open_objects and read.relation == content.relation
            assert straight or (objects == open_objects[::-1] and read.relation == INVERSE_RELATION[content.relation])
        assert text.count(" front ") + text.count("behind") <= scene.overlapping
        for obj, places in zip(content.objects, noun_indices(text, content), strict=False):
            name = [text.split()[i] for i in places]
            assert not name or (obj.style is None) == (not STYLE_VOCABULARY & set(name))
    assert named / mentioned == pytest.approx(0.7, abs=0.04)
    assert all(words[word] for word in (*STYLE_VOCABULARY, "front", "behind"))
    assert words["outlined"] > words["outline"]


@pytest.mark.parametrize("count", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_negatives_of_styles_and_overlaps(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    found = hard_negatives(parse_caption("an outlined red star in front of a blue ring sticker"), generator)
    for other in (
        "an outlined red star behind a blue ring sticker",
        "a red star sticker in front of an outlined blue ring",
        "a red star sticker in front of a blue ring sticker",
    ):
        assert parse_caption(other) in found, other
    assert not any(wrong.relation in RELATIONS for wrong in found)  # it may also be to the left
    apart = hard_negatives(parse_caption("an outlined red star left of a blue ring"), generator)
    assert {"in front of", "behind"} < {wrong.relation for wrong in apart}
    for scene, picture in zip(SCENES[:count], render(SCENES[:count]), strict=True):
        found, background = detect_objects(picture)
        assert compatible(expectation_of(scene), parse_caption(sample_caption(scene, generator)))
        for wrong in hard_negatives(select_content(scene, generator), generator):
            assert not judge(tuple(found), background, wrong).exact, (scene, wrong)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("a red star", "a red star sticker", True),
        ("an outlined red star", "a red star sticker", False),
        ("a star in front of a ring", "a ring behind a star", True),
        ("a star in front of a ring", "a star behind a ring", False),
        ("a red star in front of a ring", "a red star above a ring", False),
        ("a star in front of a ring", "a star and a ring", True),
    ],
)
def test_compatible_captions(first: str, second: str, both: bool) -> None:
    assert compatible(parse_caption(first), parse_caption(second)) == both
    assert compatible(parse_caption(second), parse_caption(first)) == both
