"""Captions: true, plain, varied, and parsed back to their content."""

import re
from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.world.captions import (
    RELATION_PHRASES,
    TWO_OBJECTS,
    WORDS,
    Expectation,
    ObjectExpectation,
    expectation_of,
    noun_indices,
    parse_caption,
    sample_caption,
    select_content,
    write_caption,
)
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE_RELATION, Object, Scene
from minisd.sticker.world.synonyms import rephrase

SCENES = [scene_from_seed(seed) for seed in range(3000)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def swapped(content: Expectation) -> Expectation:
    relation = None if content.relation is None else INVERSE_RELATION[content.relation]
    return replace(content, objects=content.objects[::-1], relation=relation)


def without_layout(content: Expectation) -> Expectation:
    return replace(content, relation=None, objects=tuple(replace(obj, position=None) for obj in content.objects))


def test_captions_parse_back_to_their_content():
    generator, places = rng(), Counter()
    for scene in SCENES:
        content = select_content(scene, generator)
        for _ in range(3):
            read = parse_caption(write_caption(content, generator))
            whole = replace(without_layout(read), relation=read.relation)
            if content.relation is not None and read.relation is not None:
                assert whole in (closed := replace(without_layout(content), relation=content.relation), swapped(closed))
            else:  # the template left the relation out
                assert without_layout(read) in (without_layout(content), swapped(without_layout(content)))
            if any(obj.position for obj in read.objects):  # it mentions the positions of all objects
                assert read.relation is None
                assert read.objects in (content.objects, content.objects[::-1])
                places[len(read.objects)] += 1
    assert min(places[1], places[2]) > 300


def test_the_content_is_true():
    generator = rng(1)
    for scene in SCENES:
        content, whole = select_content(scene, generator), expectation_of(scene)
        assert content.background in (None, whole.background)
        for part, full in zip(content.objects, whole.objects, strict=True):
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
def test_parsing(prompt, first, relation, second):
    objects = ObjectExpectation(*first), ObjectExpectation(*second)
    assert parse_caption(prompt) == Expectation(objects, relation, None)


def test_parsing_one_object():
    obj = ObjectExpectation("star", "green", "small", ("top", "left"))
    assert parse_caption("a small green star in the top left on a black background") == Expectation(
        (obj,), None, "black"
    )


def test_parsing_two_positions():
    first = ObjectExpectation("star", "green", None, ("top", "left"))
    second = ObjectExpectation("ring", None, "large", ("middle", "right"))
    assert parse_caption("a green star in the top left and a large ring on the right") == Expectation((first, second))
    assert parse_caption("in the top left a green star and on the right a large ring") == Expectation((first, second))


@pytest.mark.parametrize("prompt", ["three small red crosses", "there are three small red crosses"])
def test_parsing_several_of_a_kind(prompt):
    assert parse_caption(prompt) == Expectation((ObjectExpectation("cross", "red", "small"),) * 3)


def test_several_of_a_kind_are_counted_and_share_one_description():
    generator = rng(5)
    for seed in range(200):
        scene = scene_from_seed(seed, two=0, several=1)
        content = select_content(scene, generator)
        assert len(set(content.objects)) == 1
        assert parse_caption(write_caption(content, generator)) == content
        assert len(content.objects) == len(scene.objects)


HELD_OUT = [template for template, weight in TWO_OBJECTS.items() if weight == 0]


@pytest.mark.parametrize("template", HELD_OUT)
def test_a_template_of_weight_zero_is_parsed(template: str) -> None:
    prompt = template.format(a="a red circle", b="a blue square", rel="above")
    content = Expectation((ObjectExpectation("circle", "red"), ObjectExpectation("square", "blue")), "above")
    assert parse_caption(prompt) in (content, swapped(content))


def test_a_template_of_weight_zero_is_never_written() -> None:
    generator = rng(6)
    slots = {"{a}": ".*", "{b}": ".*", "{rel}": f"(?:{'|'.join(chain(*RELATION_PHRASES.values()))})"}
    patterns = [re.compile(re.sub(r"\{\w+\}", lambda slot: slots[slot[0]], template)) for template in HELD_OUT]
    assert len(patterns) == 3
    for scene in SCENES:
        caption = sample_caption(scene, generator)
        for text in (caption, rephrase(caption, generator).replace(",", " and")):
            assert not any(pattern.fullmatch(text) for pattern in patterns), text


@pytest.mark.parametrize(
    "prompt",
    ["", "a photo of a dog", "red above blue", "a circle circle", "a red circle above", "six circles", "two circle"],
)
def test_unknown_captions_are_errors(prompt):
    with pytest.raises(InputError, match="cannot read"):
        parse_caption(prompt)


def test_the_vocabulary_is_complete_and_every_word_is_used():
    generator = rng(2)
    styled = [scene_from_seed(seed, two=1, styled=0.8, overlapping=0.3) for seed in range(600)]
    styled += [scene_from_seed(seed, two=0, several=1, styled=1) for seed in range(1600)]
    captions = [sample_caption(scene, generator) for scene in SCENES + styled]
    captions += [rephrase(caption, generator) for caption in captions]
    used = Counter(word for words in captions for word in re.findall(r"\w+", words))
    assert set(used) == set(WORDS)
    assert all(word.isalnum() and word == word.lower() for word in WORDS)
    assert min(used.values()) >= 20


def test_proportions():
    generator = rng(3)
    pairs = [(scene, sample_caption(scene, generator)) for scene in SCENES]
    unnamed = Counter(scene.background for scene, words in pairs if "background" not in words)
    assert unnamed["white"] / unnamed.total() >= 0.7
    assert len(TWO_OBJECTS) >= 6
    plain = [words for scene, words in pairs if scene.relation and words[0] == "a" and " it" not in words]
    assert len(plain) > 0.5 * sum(scene.relation is not None for scene in SCENES)
    full = [all(t.colour and t.shape for t in parse_caption(words).objects) for _, words in pairs]
    assert 0.55 < sum(full) / len(full) < 0.85


def test_same_generator_same_caption():
    assert [sample_caption(scene, rng(4)) for scene in SCENES[:50]] == [
        sample_caption(scene, rng(4)) for scene in SCENES[:50]
    ]


def test_content_without_words_is_an_error():
    with pytest.raises(InputError, match="one or two"):
        write_caption(Expectation(()), rng())
    with pytest.raises(InputError, match="2 to 5 of one kind"):
        write_caption(
            Expectation((ObjectExpectation("star"), ObjectExpectation("ring"), ObjectExpectation("star"))), rng()
        )
    with pytest.raises(InputError, match="without a word"):
        write_caption(Expectation((ObjectExpectation("star", "red", "medium"),)), rng())
    with pytest.raises(InputError, match="style 'dotted'"):
        write_caption(Expectation((ObjectExpectation("star", "red", style="dotted"),)), rng())
    with pytest.raises(InputError, match="relation 'inside'"):
        write_caption(Expectation((ObjectExpectation("star"), ObjectExpectation("ring")), "inside"), rng())


STAR = Object("star", "red", "large", 0.25, 0.25, 0.19)
RING = Object("ring", "blue", "small", 0.75, 0.75, 0.09)


def nouns_in(text: str, scene: Scene) -> list[list[str]]:
    return [[text.split()[i] for i in indices] for indices in noun_indices(text, expectation_of(scene))]


def test_the_noun_phrase_of_each_object_in_all_wordings() -> None:
    scene = Scene((STAR, RING))
    expected = [["large", "red", "star"], ["small", "blue", "ring"]]
    assert nouns_in("a large red star left of a small blue ring", scene) == expected
    assert nouns_in("a small blue ring with a large red star above it on a gray background", scene) == expected
    stars = Scene(tuple(Object("star", "red", "small", x, 0.5, 0.09) for x in (0.2, 0.5, 0.8)))
    assert nouns_in("there are three small red stars", stars) == [["three", "small", "red", "stars"]]


def test_every_caption_names_its_objects() -> None:
    scene, generator = Scene((STAR, RING), "gray"), rng()
    for _ in range(100):
        text = write_caption(expectation_of(scene), generator)
        assert nouns_in(text, scene) == [["large", "red", "star"], ["small", "blue", "ring"]]


def test_two_objects_with_the_same_name_have_no_noun_phrase() -> None:
    content = Expectation((ObjectExpectation(), ObjectExpectation()), "left of")
    assert noun_indices("a shape left of a shape", content) == [[], []]
