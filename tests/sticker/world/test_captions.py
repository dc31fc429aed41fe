"""Captions: true, plain, varied, and readable by our own parser."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.world.captions import (
    TWO,
    WORDS,
    Expectation,
    ThingExpectation,
    caption,
    describe,
    expectation,
    expectation_of,
    mention,
)
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE

SCENES = [scene_from_seed(seed) for seed in range(3000)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def swapped(wanted: Expectation) -> Expectation:
    relation = None if wanted.relation is None else INVERSE[wanted.relation]
    return replace(wanted, things=wanted.things[::-1], relation=relation)


def open_places(wanted: Expectation) -> Expectation:
    return replace(wanted, relation=None, things=tuple(replace(thing, position=None) for thing in wanted.things))


def test_captions_parse_back_to_what_was_mentioned():
    generator, places = rng(), Counter()
    for scene in SCENES:
        said = mention(scene, generator)
        for _ in range(3):
            read = expectation(describe(said, generator))
            whole = replace(open_places(read), relation=read.relation)
            if said.relation is not None and read.relation is not None:
                assert whole in (closed := replace(open_places(said), relation=said.relation), swapped(closed))
            else:  # the template left the relation out
                assert open_places(read) in (open_places(said), swapped(open_places(said)))
            if any(thing.position for thing in read.things):  # it named the places of all things
                assert read.relation is None
                assert read.things in (said.things, said.things[::-1])
                places[len(read.things)] += 1
    assert min(places[1], places[2]) > 300


def test_what_is_mentioned_is_true():
    generator = rng(1)
    for scene in SCENES:
        said, whole = mention(scene, generator), expectation_of(scene)
        assert said.background in (None, whole.background)
        for part, full in zip(said.things, whole.things, strict=True):
            assert part.shape in (None, full.shape)
            assert part.colour in (None, full.colour)
            assert part.size in (None, full.size)


@pytest.mark.parametrize(
    ("prompt", "first", "relation", "second"),
    [
        ("a red circle above a blue square", ("circle", "red"), "above", ("square", "blue")),
        ("a blue square below a red circle", ("square", "blue"), "below", ("circle", "red")),
        ("to the left of an orange ring is a star", ("star", None), "left of", ("ring", "orange")),
        ("a red heart with a pink shape under it", ("heart", "red"), "above", (None, "pink")),
        ("A red  circle, above the blue square.", ("circle", "red"), "above", ("square", "blue")),
    ],
)
def test_reading(prompt, first, relation, second):
    things = ThingExpectation(*first), ThingExpectation(*second)
    assert expectation(prompt) == Expectation(things, relation, None)


def test_reading_one_thing():
    thing = ThingExpectation("star", "green", "small", ("top", "left"))
    assert expectation("a small green star in the top left on a black background") == Expectation(
        (thing,), None, "black"
    )


def test_reading_two_places():
    first = ThingExpectation("star", "green", None, ("top", "left"))
    second = ThingExpectation("ring", None, "large", ("middle", "right"))
    assert expectation("a green star in the top left and a large ring on the right") == Expectation((first, second))
    assert expectation("in the top left a green star and on the right a large ring") == Expectation((first, second))


@pytest.mark.parametrize("prompt", ["three small red crosses", "there are three small red crosses"])
def test_reading_several_of_a_kind(prompt):
    assert expectation(prompt) == Expectation((ThingExpectation("cross", "red", "small"),) * 3)


def test_of_several_of_a_kind_the_number_is_said_and_the_same_of_all():
    generator = rng(5)
    for seed in range(200):
        scene = scene_from_seed(seed, two=0, several=1)
        said = mention(scene, generator)
        assert len(set(said.things)) == 1
        assert expectation(describe(said, generator)) == said
        assert len(said.things) == len(scene.things)


def test_a_template_of_weight_zero_is_read_and_never_written():
    generator = rng(6)
    (held,) = [template for template, weight in TWO.items() if weight == 0]
    prompt = held.format(a="a red circle", b="a blue square", rel="above")
    assert expectation(prompt) == Expectation(
        (ThingExpectation("circle", "red"), ThingExpectation("square", "blue")), "above"
    )
    start = re.compile("there is an? .* with ")
    assert start.match(prompt)
    assert not any(start.match(caption(scene, generator)) for scene in SCENES)


@pytest.mark.parametrize(
    "prompt",
    ["", "a photo of a dog", "red above blue", "a circle circle", "a red circle above", "six circles", "two circle"],
)
def test_what_cannot_be_read_is_an_error(prompt):
    with pytest.raises(InputError, match="cannot read"):
        expectation(prompt)


def test_words_are_all_words_and_all_are_used():
    generator = rng(2)
    styled = [scene_from_seed(seed, two=1, styled=0.8, overlapping=0.3) for seed in range(600)]
    styled += [scene_from_seed(seed, two=0, several=1, styled=1) for seed in range(1600)]
    said = [caption(scene, generator) for scene in SCENES + styled]
    used = Counter(word for words in said for word in words.split())
    assert set(used) == set(WORDS)
    assert all(word.isalpha() and word.islower() for word in WORDS)
    assert min(used.values()) >= 20


def test_proportions():
    generator = rng(3)
    pairs = [(scene, caption(scene, generator)) for scene in SCENES]
    unnamed = Counter(scene.background for scene, words in pairs if "background" not in words)
    assert unnamed["white"] / unnamed.total() >= 0.7
    assert len(TWO) >= 6
    plain = [words for scene, words in pairs if scene.relation and words[0] == "a" and " it" not in words]
    assert len(plain) > 0.5 * sum(scene.relation is not None for scene in SCENES)
    full = [all(t.colour and t.shape for t in expectation(words).things) for _, words in pairs]
    assert 0.55 < sum(full) / len(full) < 0.85


def test_same_generator_same_caption():
    assert [caption(scene, rng(4)) for scene in SCENES[:50]] == [caption(scene, rng(4)) for scene in SCENES[:50]]


def test_what_has_no_words_is_an_error():
    with pytest.raises(InputError, match="one or two"):
        describe(Expectation(()), rng())
    with pytest.raises(InputError, match="2 to 5 alike"):
        describe(Expectation((ThingExpectation("star"), ThingExpectation("ring"), ThingExpectation("star"))), rng())
    with pytest.raises(InputError, match="without a name"):
        describe(Expectation((ThingExpectation("star", "red", "medium"),)), rng())
    with pytest.raises(InputError, match="style 'dotted'"):
        describe(Expectation((ThingExpectation("star", "red", style="dotted"),)), rng())
    with pytest.raises(InputError, match="relation 'beside'"):
        describe(Expectation((ThingExpectation("star"), ThingExpectation("ring")), "beside"), rng())
