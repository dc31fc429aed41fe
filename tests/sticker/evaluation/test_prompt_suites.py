"""The suites: readable, satisfiable, about what they say, and only the held-out ones hold what is held out."""

from collections import Counter

import pytest
import torch

from minisd.errors import InputError
from minisd.sticker.evaluation.metrics import asks
from minisd.sticker.evaluation.prompt_suites import LARGEST_SEED, PARAPHRASE, SUITES, Example, examples, suites, word
from minisd.sticker.training.dataset import UNSEEN
from minisd.sticker.world.captions import WORDS, Expectation, expectation
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.nouns import STYLE_VOCABULARY
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import CROWDS, scene_from_seed
from minisd.sticker.world.scene import INVERSE
from minisd.sticker.world.splits import COUNTS, PAIRS, TRIPLES, held_out

COUNT = 60
DRAWN = {name: examples(name, COUNT, seed=0) for name in SUITES}
WANTED = {name: [expectation(example.prompt) for example in drawn] for name, drawn in DRAWN.items()}


def novelties(wanted: Expectation) -> set[str]:
    """What of a prompt is held out, by its words alone."""
    things = wanted.things
    found = {"pairs" for thing in things if (thing.shape, thing.colour) in PAIRS}
    if wanted.relation is not None:
        first, second = (thing.shape for thing in things)
        triples = {(first, wanted.relation, second), (second, INVERSE[wanted.relation], first)}
        found |= {"triples"} if triples & TRIPLES else set()
    elif len(set(things)) == 1 and (len(things), things[0].shape) in COUNTS:
        found |= {"counts"}
    return found


@pytest.mark.parametrize("name", SUITES)
def test_a_scene_of_every_prompt_is_exact(name: str) -> None:
    drawn = DRAWN[name][:12]
    pictures = render([example.scene for example in drawn])
    assert all(check(picture, example.prompt).exact for picture, example in zip(pictures, drawn, strict=True))


@pytest.mark.parametrize("name", SUITES)
def test_only_held_out_suites_have_what_is_held_out(name: str) -> None:
    kind = name.removeprefix("held-out ")
    for example, wanted in zip(DRAWN[name], WANTED[name], strict=True):
        if kind in ("pairs", "triples", "counts"):
            assert kind in novelties(wanted)
            assert kind == "pairs" or novelties(wanted) == {kind}  # a new pair may be in new company, too
            assert held_out(example.scene)
        else:
            assert not novelties(wanted)
            assert not held_out(example.scene)


@pytest.mark.parametrize(
    ("name", "things", "always", "sometimes"),
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
    ],
)
def test_what_each_suite_asks_for(name: str, things: set[int], always: str, sometimes: str) -> None:
    asked = [asks(wanted) for wanted in WANTED[name]]
    base = {"exact", "count"} | (set() if name == "partial" else {"colour", "shape"})
    assert set.intersection(*asked) == base | set(always.split())
    assert set.union(*asked) == base | {*always.split(), *sometimes.split()}
    assert {len(wanted.things) for wanted in WANTED[name]} == things


def test_particulars() -> None:
    for wanted in WANTED["binding"]:
        first, second = wanted.things
        assert (first.shape == second.shape) != (first.colour == second.colour)
    for wanted in WANTED["partial"]:
        assert any(thing.shape is None or thing.colour is None for thing in wanted.things)
    assert all(thing.size and thing.shape and thing.colour for wanted in WANTED["full"] for thing in wanted.things)
    assert all(thing.position for wanted in WANTED["position"] for thing in wanted.things)
    assert all(example.prompt.startswith("there is ") for example in DRAWN["held-out template"])
    assert all(" with " in example.prompt for example in DRAWN["held-out template"])
    assert PARAPHRASE == "there is {b} with {a} {rel} it"
    for example in DRAWN["count"]:
        assert len(example.scene.things) in CROWDS[example.scene.things[0].size]
    assert set(Counter(wanted.background for wanted in WANTED["background"])) == {"white", "black", "gray", "beige"}
    assert all(any(thing.style for thing in wanted.things) for wanted in WANTED["style"])
    assert {wanted.relation for wanted in WANTED["in front"]} == {"in front of", "behind"}
    assert all(len({example.prompt for example in DRAWN[name]}) > 5 for name in SUITES)


def test_words_say_what_is_chosen_and_nothing_else() -> None:
    rng = torch.Generator().manual_seed(0)
    scene = next(s for s in map(scene_from_seed, range(100)) if len(s.things) == 1 and s.things[0].size == "small")
    thing = scene.things[0]
    assert expectation(word(scene, "size", rng)).things[0].colour is None
    assert thing.colour in word(scene, "shape colour", rng)
    assert "background" not in word(scene, "shape", rng)
    assert word(scene, "background", rng).endswith(f"on a {scene.background} background")


def test_a_seed_is_a_set_of_prompts() -> None:
    assert suites(5, seed=3) == suites(5, seed=3)
    other, usual = suites(5, seed=4), suites(5, seed=3)
    assert all(other[name] != usual[name] for name in SUITES)
    assert usual["single"] == [example.prompt for example in examples("single", 9, seed=3)[:5]]
    assert isinstance(DRAWN["two"][0], Example)
    assert DRAWN["two"][0].scene != DRAWN["binding"][0].scene


def test_no_seed_is_one_of_training() -> None:
    assert UNSEEN == 10**6
    assert UNSEEN + 100 * LARGEST_SEED + len(SUITES) < 2**32  # PyTorch forgets what is above
    assert len(SUITES) <= 100
    with pytest.raises(InputError, match="seed is"):
        examples("single", 1, LARGEST_SEED + 1)
    with pytest.raises(InputError, match="no suite 'nonsense', expected one of single"):
        examples("nonsense", 1, 0)


def test_a_model_is_asked_only_for_what_it_was_taught() -> None:
    words = "a an red blue orange circle star to the left right of above below under over is there picture with and it"
    asked = suites(12, seed=0, words=words)
    assert all(len(asked[name]) == 12 for name in ("single", "two", "binding", "held-out template"))
    assert {word for prompts in asked.values() for prompt in prompts for word in prompt.split()} <= set(words.split())
    assert [name for name, prompts in asked.items() if not prompts] == [
        "position", "size", "background", "count", "full", "held-out pairs", "held-out triples", "held-out counts",
        "style", "in front",
    ]  # fmt: skip


def test_styles_and_what_is_in_front_are_not_asked_of_a_model_without_the_words() -> None:
    before = " ".join(word for word in WORDS if word not in {*STYLE_VOCABULARY, "front", "behind"})
    asked, taught = (suites(2, seed=0, words=words) for words in (before, " ".join(WORDS)))
    assert not asked["style"]
    assert not asked["in front"]
    assert all(taught.values())
    assert len(asked["two"]) == 2
