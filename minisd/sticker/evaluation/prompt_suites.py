"""What a model is asked to draw: suites of prompts, each about scenes that training could have shown, or held out.

Every prompt describes a scene of the world, so it can be satisfied, and `captions.expectation` reads all that it says.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from minisd._internal import validation
from minisd.errors import InputError
from minisd.sticker.training.dataset import UNSEEN
from minisd.sticker.world import nouns
from minisd.sticker.world.captions import (
    NAMED_SIZES,
    NAMED_STYLES,
    RELATION_WORDS,
    TWO,
    Expectation,
    ThingExpectation,
    describe,
    expectation,
    expectation_of,
)
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import INVERSE, Scene
from minisd.sticker.world.splits import PAIRS, held_out

LARGEST_SEED = 10**7  # PyTorch keeps 32 bits of a seed: a larger one could be one of training's
PATIENCE = 1000  # prompts that may be tried for one that has only known words
PARAPHRASE = next(template for template, weight in TWO.items() if weight == 0)  # read, never taught


class Example(NamedTuple):
    """A prompt, and a scene that satisfies it."""

    prompt: str
    scene: Scene


def _taught(scene: Scene) -> bool:
    return not held_out(scene)


def _new_pair(scene: Scene) -> bool:
    return any((thing.shape, thing.colour) in PAIRS for thing in scene.things)


def _new_company(scene: Scene) -> bool:
    """All pairs are taught; the triple, or the number, is not."""
    return held_out(scene) and not _new_pair(scene)


def _half_alike(scene: Scene) -> bool:
    """Of the two things either shape or colour is the same: only binding them rightly tells the two apart."""
    first, second = scene.things
    return (first.shape == second.shape) != (first.colour == second.colour)


def _placed(scene: Scene) -> bool:
    """Nothing is near the border between two places."""
    return all(thing.position is not None for thing in expectation_of(scene).things)


def _some_named_size(scene: Scene) -> bool:
    return any(thing.size in NAMED_SIZES for thing in scene.things)


def _some_named_style(scene: Scene) -> bool:
    return any(thing.style in NAMED_STYLES for thing in scene.things)


def _all_named_sizes(scene: Scene) -> bool:
    return all(thing.size in NAMED_SIZES for thing in scene.things)


@dataclass(frozen=True)
class Suite:
    """Scenes as `sample_scene` draws them, if `split` and `keep` let them through, and what prompts say of them.

    says: of shape, colour, size, style, position, relation and background. Each shape and colour is left out all the
    same with probability `left_out`, at least one of a prompt if that is not 0. paraphrase: worded by PARAPHRASE.
    """

    says: str
    two: float = 0.0
    several: float = 0.0
    white: float = 0.55
    split: Callable[[Scene], bool] = _taught
    keep: Callable[[Scene], bool] = lambda scene: True
    left_out: float = 0.0
    paraphrase: bool = False
    styled: float = 0.0
    overlapping: float = 0.0


SUITES: dict[str, Suite] = {
    "single": Suite("shape colour"),
    "two": Suite("shape colour relation", two=1),
    "binding": Suite("shape colour relation", two=1, keep=_half_alike),
    "position": Suite("shape colour position", two=0.5, keep=_placed),
    "size": Suite("shape colour size relation", two=0.5, keep=_some_named_size),
    "background": Suite("shape colour relation background", two=0.5, white=0.25),
    "count": Suite("shape colour", several=1),
    "partial": Suite("shape colour size relation", two=0.5, left_out=0.4),
    "full": Suite("shape colour size relation background", two=1, white=0.25, keep=_all_named_sizes),
    "held-out pairs": Suite("shape colour relation", two=0.5, split=_new_pair),
    "held-out triples": Suite("shape colour relation", two=1, split=_new_company),
    "held-out counts": Suite("shape colour", several=1, split=_new_company),
    "held-out template": Suite("shape colour relation", two=1, paraphrase=True),
    # Last, because its place in the list chooses a suite's prompts.
    "style": Suite("shape colour style relation", two=0.5, styled=0.7, keep=_some_named_style),
    "in front": Suite("shape colour relation", two=1, overlapping=1),
}


def suites(count: int, seed: int, words: str = "") -> dict[str, list[str]]:
    """`count` prompts of each suite; the same for the same seed, in 0..LARGEST_SEED. See `examples` for `words`."""
    return {name: [example.prompt for example in examples(name, count, seed, words)] for name in SUITES}


def examples(name: str, count: int, seed: int, words: str = "") -> list[Example]:
    """The first `count` prompts of a suite, each with the scene that it was made from.

    words: all that a model was taught, as in its Defaults; prompts have no others, and there are none where these do
    not do for the suite. Raises InputError for an unknown suite, or a seed outside of 0..LARGEST_SEED.
    """
    if name not in SUITES:
        raise InputError(f"there is no suite {name!r}, expected one of {', '.join(SUITES)}.")
    seed = validation.whole_number(seed, "seed", 0, LARGEST_SEED)
    rng = torch.Generator().manual_seed(UNSEEN + 100 * seed + list(SUITES).index(name))
    suite = SUITES[name]
    chosen: list[Example] = []
    while len(chosen) < count:
        tries = (_example(suite, rng) for _ in range(PATIENCE))
        known = next((each for each in tries if not validation.foreign_words([each.prompt], words)), None)
        if known is None:
            return []
        chosen.append(known)
    return chosen


def _example(suite: Suite, rng: torch.Generator) -> Example:
    while True:
        scene = sample_scene(rng, suite.two, suite.several, suite.white, suite.styled, suite.overlapping)
        if suite.split(scene) and suite.keep(scene):
            break
    if suite.paraphrase:
        return Example(_paraphrase(scene, rng), scene)
    return Example(word(scene, suite.says, rng, suite.left_out), scene)


def word(scene: Scene, says: str, rng: torch.Generator, left_out: float = 0.0) -> str:
    """A prompt for a scene that says these things of it, and nothing else; `says` and `left_out` as of a Suite.

    A medium size has no name, and flat goes without saying, so they are never said.
    """
    chosen, whole = says.split(), expectation_of(scene)

    def said(thing: ThingExpectation) -> ThingExpectation:
        shape, colour = (torch.rand(2, generator=rng) >= left_out).tolist()
        return ThingExpectation(
            thing.shape if "shape" in chosen and shape else None,
            thing.colour if "colour" in chosen and colour else None,
            thing.size if "size" in chosen and thing.size in NAMED_SIZES else None,
            thing.position if "position" in chosen else None,
            thing.style if "style" in chosen and thing.style in NAMED_STYLES else None,
        )

    things = tuple(said(thing) for thing in whole.things)
    while left_out > 0 and all(thing.shape and thing.colour for thing in things):
        things = tuple(said(thing) for thing in whole.things)
    wanted = Expectation(
        things,
        whole.relation if "relation" in chosen else None,
        whole.background if "background" in chosen else None,
    )
    mirrored = replace(
        wanted,
        things=wanted.things[::-1],
        relation=None if wanted.relation is None else INVERSE[wanted.relation],
    )
    while expectation(prompt := describe(wanted, rng)) not in (wanted, mirrored):  # the template left something out
        pass
    return prompt


def _paraphrase(scene: Scene, rng: torch.Generator) -> str:
    """The colours, shapes and the relation of two things in words that no caption uses."""
    a, b = (nouns.one(ThingExpectation(thing.shape, thing.colour)) for thing in scene.things)
    phrases = RELATION_WORDS[str(scene.relation)]
    rel = phrases[int(torch.randint(len(phrases), (), generator=rng))]
    return PARAPHRASE.format(a=a, b=b, rel=rel)
