"""The suites: prompts can be parsed and met, test the right skills, and only held-out suites are held out."""

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.evaluation import prompt_suites
from minisd.sticker.evaluation.judging import asked_skills
from minisd.sticker.evaluation.prompt_suites import (
    LARGEST_SEED,
    MAX_ATTEMPTS,
    PARAPHRASES,
    SUITES,
    Example,
    sample_prompts,
    suite_examples,
    write_prompt,
)
from minisd.sticker.training.dataset import FIRST_TEST_SEED
from minisd.sticker.world.captions import WORDS, Expectation, parse_caption
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.nouns import STYLE_VOCABULARY
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import COUNTS_BY_SIZE, scene_from_seed
from minisd.sticker.world.scene import INVERSE_RELATION
from minisd.sticker.world.splits import HELD_OUT_COUNTS, HELD_OUT_PAIRS, HELD_OUT_TRIPLES, held_out

COUNT = 60
EXAMPLES = {name: suite_examples(name, COUNT, seed=0) for name in SUITES}
EXPECTED = {name: [parse_caption(example.prompt) for example in examples] for name, examples in EXAMPLES.items()}


def held_out_parts(expected: Expectation) -> set[str]:
    """What is held out in a prompt, by its words alone."""
    objects = expected.objects
    found = {"pairs" for obj in objects if (obj.shape, obj.colour) in HELD_OUT_PAIRS}
    if expected.relation is not None:
        first, second = (obj.shape for obj in objects)
        triples = {(first, expected.relation, second), (second, INVERSE_RELATION[expected.relation], first)}
        found |= {"triples"} if triples & HELD_OUT_TRIPLES else set()
    elif len(set(objects)) == 1 and (len(objects), objects[0].shape) in HELD_OUT_COUNTS:
        found |= {"counts"}
    return found


@pytest.mark.parametrize("name", SUITES)
def test_a_scene_of_every_prompt_is_exact(name: str) -> None:
    examples = EXAMPLES[name][:12]
    pictures = render([example.scene for example in examples])
    assert all(check(picture, example.prompt).exact for picture, example in zip(pictures, examples, strict=True))


@pytest.mark.parametrize("name", SUITES)
def test_only_held_out_suites_have_held_out_parts(name: str) -> None:
    kind = name.removeprefix("held-out ")
    for example, expected in zip(EXAMPLES[name], EXPECTED[name], strict=True):
        if kind in ("pairs", "triples", "counts"):
            assert kind in held_out_parts(expected)
            assert kind == "pairs" or held_out_parts(expected) == {kind}
            assert held_out(example.scene)
        else:
            assert not held_out_parts(expected)
            assert not held_out(example.scene)


@pytest.mark.parametrize(
    ("name", "objects", "always", "sometimes"),
    [
        ("single", {1}, "object", ""),
        ("two", {2}, "object relation", ""),
        ("binding", {2}, "object relation", ""),
        ("position", {1, 2}, "object position", ""),
        ("size", {1, 2}, "object size", "relation"),
        ("background", {1, 2}, "object background", "relation"),
        ("count", {2, 3, 4, 5}, "object", ""),
        ("partial", {1, 2}, "", "object colour shape size relation"),
        ("full", {2}, "object size relation background", ""),
        ("held-out pairs", {1, 2}, "object", "relation"),
        ("held-out triples", {2}, "object relation", ""),
        ("held-out counts", {4}, "object", ""),
        ("held-out template", {2}, "object relation", ""),
        ("style", {1, 2}, "object style", "relation"),
        ("in front", {2}, "object relation", ""),
        ("rephrased", {1, 2, 3, 4, 5}, "object", "relation size"),
    ],
)
def test_the_skills_that_each_suite_tests(name: str, objects: set[int], always: str, sometimes: str) -> None:
    asked = [asked_skills(expected) for expected in EXPECTED[name]]
    base = {"exact", "count"} | (set() if name == "partial" else {"colour", "shape"})
    assert set.intersection(*asked) == base | set(always.split())
    assert set.union(*asked) == base | {*always.split(), *sometimes.split()}
    assert {len(expected.objects) for expected in EXPECTED[name]} == objects


def test_details_of_the_suites() -> None:
    for expected in EXPECTED["binding"]:
        first, second = expected.objects
        assert (first.shape == second.shape) != (first.colour == second.colour)
    for expected in EXPECTED["partial"]:
        assert any(obj.shape is None or obj.colour is None for obj in expected.objects)
    assert all(obj.size and obj.shape and obj.colour for expected in EXPECTED["full"] for obj in expected.objects)
    assert all(obj.position for expected in EXPECTED["position"] for obj in expected.objects)
    assert PARAPHRASES == ["there is {b} with {a} {rel} it", "{rel} {b} there is {a}", "{b} and {a} {rel} it"]
    for part in (" with ", " there is ", " and "):
        assert any(part in example.prompt for example in EXAMPLES["held-out template"])
    for example in EXAMPLES["count"]:
        assert len(example.scene.objects) in COUNTS_BY_SIZE[example.scene.objects[0].size]
    assert {expected.background for expected in EXPECTED["background"]} == {"white", "black", "gray", "beige"}
    assert all(any(obj.style for obj in expected.objects) for expected in EXPECTED["style"])
    assert {expected.relation for expected in EXPECTED["in front"]} == {"in front of", "behind"}
    assert all(len({example.prompt for example in EXAMPLES[name]}) > 5 for name in SUITES)


def test_prompts_mention_what_is_chosen_and_nothing_else() -> None:
    rng = torch.Generator().manual_seed(0)
    scene = next(s for s in map(scene_from_seed, range(100)) if len(s.objects) == 1 and s.objects[0].size == "small")
    obj = scene.objects[0]
    assert parse_caption(write_prompt(scene, "size", rng)).objects[0].colour is None
    assert obj.colour in write_prompt(scene, "shape colour", rng)
    assert "background" not in write_prompt(scene, "shape", rng)
    assert write_prompt(scene, "background", rng).endswith(f"on a {scene.background} background")


def test_a_seed_is_a_set_of_prompts() -> None:
    assert sample_prompts(5, seed=3) == sample_prompts(5, seed=3)
    other, usual = sample_prompts(5, seed=4), sample_prompts(5, seed=3)
    assert all(other[name] != usual[name] for name in SUITES)
    assert usual["single"] == [example.prompt for example in suite_examples("single", 9, seed=3)[:5]]
    assert isinstance(EXAMPLES["two"][0], Example)
    assert EXAMPLES["two"][0].scene != EXAMPLES["binding"][0].scene


def test_no_seed_equals_a_seed_of_training() -> None:
    assert FIRST_TEST_SEED == 10**6
    assert FIRST_TEST_SEED + 100 * LARGEST_SEED + len(SUITES) < 2**32  # PyTorch ignores higher bits
    assert len(SUITES) <= 100
    with pytest.raises(InputError, match="seed is"):
        suite_examples("single", 1, LARGEST_SEED + 1)
    with pytest.raises(InputError, match="no suite 'nonsense', expected one of single"):
        suite_examples("nonsense", 1, 0)


FEW_WORDS = "a an red blue orange circle star to the left right of above below under over is there picture with and it"
POSSIBLE = ("single", "two", "binding", "partial", "held-out template")  # in FEW_WORDS


@pytest.mark.parametrize("name", POSSIBLE)
def test_prompts_use_only_words_that_the_model_knows(name: str) -> None:
    prompts = [example.prompt for example in suite_examples(name, 12, 0, FEW_WORDS)]
    assert len(prompts) == 12
    assert {word for prompt in prompts for word in prompt.split()} <= set(FEW_WORDS.split())


@pytest.mark.parametrize("attempts", [40, pytest.param(MAX_ATTEMPTS, marks=pytest.mark.slow)])
def test_no_prompts_where_the_model_lacks_the_words(attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_suites, "MAX_ATTEMPTS", attempts)
    for name in set(SUITES) - set(POSSIBLE):
        assert not suite_examples(name, 12, 0, FEW_WORDS), name


def test_styles_and_overlaps_are_left_out_for_a_model_without_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_suites, "MAX_ATTEMPTS", 50)
    before = " ".join(word for word in WORDS if word not in {*STYLE_VOCABULARY, "front", "behind"})
    asked, taught = (sample_prompts(2, seed=0, words=words) for words in (before, " ".join(WORDS)))
    assert not asked["style"]
    assert not asked["in front"]
    assert all(taught.values())
    assert len(asked["two"]) == 2
