"""What people type: read as the content of a caption, and written from captions."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.training.dataset import new_tokenizer
from minisd.sticker.training.hard_negatives import compatible
from minisd.sticker.world.captions import (
    Expectation,
    ObjectExpectation,
    noun_indices,
    parse_caption,
    select_content,
    write_caption,
)
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import INVERSE_RELATION, Object, Scene
from minisd.sticker.world.synonyms import CAPTION_WORD, SYNONYMS, WORDS, rephrase

SCENES = [scene_from_seed(seed, two=0.5, several=0.3, styled=0.3, overlapping=0.4) for seed in range(1500)]


def one(shape: str, colour: str | None = None, size: str | None = None) -> Expectation:
    return Expectation((ObjectExpectation(shape, colour, size),))


def two(first: str, relation: str | None, second: str) -> Expectation:
    objects = (ObjectExpectation(*reversed(each.split())) for each in (first, second))
    return Expectation(tuple(objects), relation)


@pytest.mark.parametrize(
    ("prompt", "content"),
    [
        ("draw a big red disc", one("circle", "red", "large")),
        ("Draw me a HUGE violet box, please!", one("square", "purple", "large")),
        ("a violet heart on top of a yellow square", two("purple heart", "above", "yellow square")),
        ("tiny green dot", one("circle", "green", "small")),
        ("please draw the little hoop", one("ring", None, "small")),
        ("A RED CIRCLE NEXT TO A BLUE BOX", two("red circle", "beside", "blue square")),
        ("a red circle beside a blue square", two("red circle", "beside", "blue square")),
        ("a red circle on the left of a blue square", two("red circle", "left of", "blue square")),
        ("a red circle underneath a blue square", two("red circle", "below", "blue square")),
        ("a red circle, a blue square", two("red circle", None, "blue square")),
        ("red circle with blue square", two("red circle", None, "blue square")),
        ("a red circle & a blue square", two("red circle", None, "blue square")),
        ("a red circle + a blue square; ", None),
        ("not_a red circle", None),
        ("a red circle no_square", None),
        ("draw a red circle, and a blue square", two("red circle", None, "blue square")),
        ("show me 3 little boxes", Expectation((ObjectExpectation("square", None, "small"),) * 3)),
        ("a green star on grey", replace(one("star", "green"), background="gray")),
        ("the centre of a star", None),
        ("please", None),
    ],
)
def test_what_people_type_is_read(prompt: str, content: Expectation | None) -> None:
    if content is None:
        with pytest.raises(InputError, match="cannot read"):
            parse_caption(prompt)
    else:
        assert parse_caption(prompt) == content


@pytest.mark.parametrize(
    "place", ["in the top left", "in the top left corner", "in the upper left corner", "at the top left"]
)
def test_places(place: str) -> None:
    (obj,) = parse_caption(f"a green star {place}").objects
    assert obj == ObjectExpectation("star", "green", None, ("top", "left"))


def test_a_rephrased_caption_has_the_content_of_the_caption() -> None:
    rng, words, loose = torch.Generator().manual_seed(0), Counter(), 0
    for scene in SCENES:
        caption = write_caption(select_content(scene, rng), rng)
        text = rephrase(caption, rng)
        read, expected = parse_caption(text), parse_caption(caption)
        if read.relation == "beside":
            assert expected.relation in ("left of", "right of")
            expected, loose = replace(expected, relation="beside"), loose + 1
        assert read == expected, (caption, text)
        words.update(re.findall(r"\w+", text))
    assert loose > 30
    assert not WORDS - set(words)


def test_a_clause_with_a_verb_is_not_joined_by_with() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = {rephrase("there is a red ring and a blue star is below it", generator) for _ in range(100)}
    assert any(", " in text for text in texts)
    assert not any(" with " in text for text in texts)


def test_every_word_and_mark_is_one_token_so_that_nouns_are_found() -> None:
    rng, tokenizer = torch.Generator().manual_seed(1), new_tokenizer()
    for scene in SCENES[:300]:
        content = select_content(scene, rng)
        text = rephrase(write_caption(content, rng), rng)
        typed = re.findall(r"\w+|[^\w\s]", text)
        assert len(tokenizer.tokenize(text)) == len(typed)
        for obj, indices in zip(content.objects, noun_indices(text, content), strict=False):
            named = [CAPTION_WORD.get(typed[i], typed[i]) for i in indices]
            assert not named or {obj.colour, obj.size} - {None} <= set(named), (text, named)
    text = "please draw a big red disc, and a blue box"
    content = two("red circle", None, "blue square")
    content = replace(content, objects=(replace(content.objects[0], size="large"), content.objects[1]))
    assert noun_indices(text, content) == [[3, 4, 5], [9, 10]]
    assert noun_indices(text, replace(content, objects=content.objects[::-1])) == [[9, 10], [3, 4, 5]]


def test_synonyms_are_new_words() -> None:
    assert not set(CAPTION_WORD) & set(SYNONYMS)
    assert SYNONYMS["squares"] == ["boxes"]
    assert SYNONYMS["crosses"] == ["pluses"]


@pytest.mark.parametrize(("x", "y", "met"), [(0.8, 0.5, True), (0.2, 0.5, True), (0.5, 0.8, False)])
def test_next_to_is_left_or_right(x: float, y: float, met: bool) -> None:
    star, ring = Object("star", "red", "small", 1 - x, 1 - y, 0.09), Object("ring", "blue", "small", x, y, 0.09)
    (image,) = render([Scene((star, ring))])
    for prompt in ("a red star next to a blue ring", "a blue ring next to a red star"):
        assert check(image, prompt).exact is met
    assert INVERSE_RELATION["beside"] == "beside"


def test_next_to_agrees_with_left_and_right() -> None:
    beside = two("red star", "beside", "blue ring")
    assert compatible(beside, two("red star", "left of", "blue ring"))
    assert compatible(two("red star", "right of", "blue ring"), beside)
    assert compatible(beside, two("blue ring", "left of", "red star"))
    assert not compatible(beside, two("red star", "above", "blue ring"))
