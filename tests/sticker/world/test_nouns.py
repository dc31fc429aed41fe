"""What things in a style, and overlapping ones, are called: read as they are written."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.training.hard_negatives import could_both_be_true, hard_negatives
from minisd.sticker.world.captions import (
    Expectation,
    ThingExpectation,
    caption,
    describe,
    expectation,
    expectation_of,
    mention,
    noun_places,
)
from minisd.sticker.world.checker.check import judge
from minisd.sticker.world.checker.segment import find
from minisd.sticker.world.nouns import STYLE_VOCABULARY
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE, RELATIONS

SCENES = [scene_from_seed(seed, two=0.6, several=0.2, styled=0.7, overlapping=0.4) for seed in range(1500)]
STAR = ThingExpectation("star", "red")


@pytest.mark.parametrize(
    ("prompt", "thing"),
    [
        ("an outlined red star", replace(STAR, style="outline")),
        ("a red star outline", replace(STAR, style="outline")),
        ("a large outlined star", ThingExpectation("star", None, "large", None, "outline")),
        ("the small red star sticker", replace(STAR, size="small", style="sticker")),
        ("a red star decal", replace(STAR, style="sticker")),
        ("a shape sticker at the top", ThingExpectation(None, None, None, ("top", "middle"), "sticker")),
    ],
)
def test_reading_a_style(prompt: str, thing: ThingExpectation) -> None:
    assert expectation(prompt) == Expectation((thing,))


@pytest.mark.parametrize("prompt", ["two outlined red stars", "two red star outlines"])
def test_reading_several_in_a_style(prompt: str) -> None:
    assert expectation(prompt) == Expectation((replace(STAR, style="outline"),) * 2)


@pytest.mark.parametrize("prompt", ["an outlined star sticker", "two star sticker", "a sticker", "two outlined star"])
def test_what_is_no_name(prompt: str) -> None:
    with pytest.raises(InputError, match="cannot read"):
        expectation(prompt)


def test_captions_parse_back_to_what_was_mentioned() -> None:
    generator, words, said_styles, named = torch.Generator().manual_seed(0), Counter(), 0, 0
    for scene in SCENES:
        said, whole = mention(scene, generator), expectation_of(scene)
        styled = [thing for thing in scene.things if thing.style != "flat"][: 1 if scene.alike else 2]
        said_styles += len(styled)
        named += sum(thing.style is not None for thing in (said.things[:1] if scene.alike else said.things))
        assert all(a.style in (None, b.style) for a, b in zip(said.things, whole.things, strict=True))
        text = describe(said, generator)
        words.update(text.split())
        read, open_things = expectation(text), tuple(replace(thing, position=None) for thing in said.things)
        things = tuple(replace(thing, position=None) for thing in read.things)
        assert things in (open_things, open_things[::-1])
        if read.relation is not None:
            straight = things == open_things and read.relation == said.relation
            assert straight or (things == open_things[::-1] and read.relation == INVERSE[said.relation])
        assert text.count(" front ") + text.count("behind") <= scene.overlapping
        for thing, places in zip(said.things, noun_places(text, said), strict=False):
            name = [text.split()[i] for i in places]
            assert not name or (thing.style is None) == (not STYLE_VOCABULARY & set(name))
    assert named / said_styles == pytest.approx(0.7, abs=0.04)
    assert all(words[word] for word in (*STYLE_VOCABULARY, "front", "behind"))
    assert words["outlined"] > words["outline"]


def test_negatives_of_styles_and_layers() -> None:
    generator = torch.Generator().manual_seed(1)
    found = hard_negatives(expectation("an outlined red star in front of a blue ring sticker"), generator)
    for other in (
        "an outlined red star behind a blue ring sticker",
        "a red star sticker in front of an outlined blue ring",
        "a red star sticker in front of a blue ring sticker",
    ):
        assert expectation(other) in found, other
    assert not any(wrong.relation in RELATIONS for wrong in found)  # it may be a little to the left, too
    apart = hard_negatives(expectation("an outlined red star left of a blue ring"), generator)
    assert {"in front of", "behind"} < {wrong.relation for wrong in apart}
    for scene, picture in zip(SCENES[:60], render(SCENES[:60]), strict=True):
        found, background = find(picture)
        assert could_both_be_true(expectation_of(scene), expectation(caption(scene, generator)))
        for wrong in hard_negatives(mention(scene, generator), generator):
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
def test_what_could_both_be_true(first: str, second: str, both: bool) -> None:
    assert could_both_be_true(expectation(first), expectation(second)) == both
    assert could_both_be_true(expectation(second), expectation(first)) == both
