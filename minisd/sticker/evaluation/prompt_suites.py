"""Suites of prompts, each for one skill, about scenes like those of the training or about held-out combinations.

Every prompt describes a scene of the world, so an exact image exists, and `parse_caption` understands every prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from minisd._internal import validation
from minisd.errors import InputError
from minisd.sticker.training.dataset import FIRST_TEST_SEED
from minisd.sticker.world import nouns, synonyms
from minisd.sticker.world.captions import (
    ATTRIBUTES,
    NAMED_SIZES,
    NAMED_STYLES,
    RELATION_PHRASES,
    TWO_OBJECTS,
    Expectation,
    ObjectExpectation,
    expectation_of,
    parse_caption,
    write_caption,
)
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import INVERSE_RELATION, Scene
from minisd.sticker.world.splits import HELD_OUT_PAIRS, held_out

LARGEST_SEED = 10**7  # PyTorch uses 32 bits of a seed: a larger one could equal a seed of the training
MAX_ATTEMPTS = 1000  # to find a prompt that has only known words
PARAPHRASES = [template for template, weight in TWO_OBJECTS.items() if weight == 0]  # not in the training captions


class Example(NamedTuple):
    """A prompt, and a scene that it describes."""

    prompt: str
    scene: Scene


def _in_training(scene: Scene) -> bool:
    return not held_out(scene)


def _held_out_pair(scene: Scene) -> bool:
    return any((obj.shape, obj.colour) in HELD_OUT_PAIRS for obj in scene.objects)


def _held_out_combination(scene: Scene) -> bool:
    """Only the triple, or the count, is held out."""
    return held_out(scene) and not _held_out_pair(scene)


def _half_alike(scene: Scene) -> bool:
    """Either shape or colour of the two objects is the same, so that the other attribute must be bound correctly."""
    first, second = scene.objects
    return (first.shape == second.shape) != (first.colour == second.colour)


def _in_clear_positions(scene: Scene) -> bool:
    """No object is near the border between two positions."""
    return all(obj.position is not None for obj in expectation_of(scene).objects)


def _some_named_size(scene: Scene) -> bool:
    return any(obj.size in NAMED_SIZES for obj in scene.objects)


def _some_named_style(scene: Scene) -> bool:
    return any(obj.style in NAMED_STYLES for obj in scene.objects)


def _all_named_sizes(scene: Scene) -> bool:
    return all(obj.size in NAMED_SIZES for obj in scene.objects)


@dataclass(frozen=True)
class Suite:
    """Scenes drawn by `sample_scene` and filtered by `split` and `keep`, and what their prompts mention.

    mentions: some of shape, colour, size, style, position, relation and background. left_out: the probability that a
    shape or colour is not mentioned all the same; if it is not 0, at least one in each prompt. paraphrase: use one of
    the templates PARAPHRASES. rephrased: in the words of `synonyms`.
    """

    mentions: str
    two: float = 0.0
    several: float = 0.0
    white: float = 0.55
    split: Callable[[Scene], bool] = _in_training
    keep: Callable[[Scene], bool] = lambda scene: True
    left_out: float = 0.0
    paraphrase: bool = False
    rephrased: bool = False
    styled: float = 0.0
    overlapping: float = 0.0


SUITES: dict[str, Suite] = {
    "single": Suite("shape colour"),
    "two": Suite("shape colour relation", two=1),
    "binding": Suite("shape colour relation", two=1, keep=_half_alike),
    "position": Suite("shape colour position", two=0.5, keep=_in_clear_positions),
    "size": Suite("shape colour size relation", two=0.5, keep=_some_named_size),
    "background": Suite("shape colour relation background", two=0.5, white=0.25),
    "count": Suite("shape colour", several=1),
    "partial": Suite("shape colour size relation", two=0.5, left_out=0.4),
    "full": Suite("shape colour size relation background", two=1, white=0.25, keep=_all_named_sizes),
    "held-out pairs": Suite("shape colour relation", two=0.5, split=_held_out_pair),
    "held-out triples": Suite("shape colour relation", two=1, split=_held_out_combination),
    "held-out counts": Suite("shape colour", several=1, split=_held_out_combination),
    "held-out template": Suite("shape colour relation", two=1, paraphrase=True),
    # New suites come last: the index of a suite is part of its seed.
    "style": Suite("shape colour style relation", two=0.5, styled=0.7, keep=_some_named_style),
    "in front": Suite("shape colour relation", two=1, overlapping=1),
    "rephrased": Suite("shape colour size relation", two=0.5, several=0.2, rephrased=True),
}


def sample_prompts(count: int, seed: int, words: str = "") -> dict[str, list[str]]:
    """`count` prompts of each suite; see `suite_examples`."""
    return {name: [example.prompt for example in suite_examples(name, count, seed, words)] for name in SUITES}


def suite_examples(name: str, count: int, seed: int, words: str = "") -> list[Example]:
    """The first `count` prompts of a suite for a seed in 0..LARGEST_SEED, each with the scene that it was made from.

    words: the vocabulary of a model, as in its Defaults. Prompts use no other words; the list is empty if the suite
    needs others, and that of rephrased prompts also without a synonym. Raises InputError for an unknown suite, or a
    seed out of range.
    """
    if name not in SUITES:
        raise InputError(f"there is no suite {name!r}, expected one of {', '.join(SUITES)}.")
    seed = validation.whole_number(seed, "seed", 0, LARGEST_SEED)
    rng = torch.Generator().manual_seed(FIRST_TEST_SEED + 100 * seed + list(SUITES).index(name))
    suite = SUITES[name]
    if suite.rephrased and validation.unknown_words([" ".join(synonyms.WORDS)], words):
        return []
    chosen: list[Example] = []
    while len(chosen) < count:
        attempts = (_sample_example(suite, rng) for _ in range(MAX_ATTEMPTS))
        known = next((each for each in attempts if not validation.unknown_words([each.prompt], words)), None)
        if known is None:
            return []
        chosen.append(known)
    return chosen


def _sample_example(suite: Suite, rng: torch.Generator) -> Example:
    while True:
        scene = sample_scene(rng, suite.two, suite.several, suite.white, suite.styled, suite.overlapping)
        if suite.split(scene) and suite.keep(scene):
            break
    prompt = _paraphrase(scene, rng) if suite.paraphrase else write_prompt(scene, suite.mentions, rng, suite.left_out)
    if suite.rephrased:
        while (changed := synonyms.rephrase(prompt, rng)) == prompt:
            pass
        prompt = changed
    return Example(prompt, scene)


def write_prompt(scene: Scene, mentions: str, rng: torch.Generator, left_out: float = 0.0) -> str:
    """A prompt that mentions these attributes of a scene and nothing else; arguments as of a Suite.

    A medium size and a flat style have no words, so they are never mentioned.
    """
    chosen, whole = mentions.split(), expectation_of(scene)

    def mentioned(obj: ObjectExpectation) -> ObjectExpectation:
        draws = zip(("shape", "colour"), (torch.rand(2, generator=rng) < left_out).tolist(), strict=True)
        dropped = {name for name, drop in draws if drop}
        return replace(obj.nameable(), **{name: None for name in ATTRIBUTES if name not in chosen or name in dropped})

    objects = tuple(mentioned(obj) for obj in whole.objects)
    while left_out > 0 and all(obj.shape and obj.colour for obj in objects):
        objects = tuple(mentioned(obj) for obj in whole.objects)
    relation = whole.relation if "relation" in chosen else None
    content = Expectation(objects, relation, whole.background if "background" in chosen else None)
    inverse = None if relation is None else INVERSE_RELATION[relation]
    mirrored = replace(content, objects=objects[::-1], relation=inverse)
    while parse_caption(prompt := write_caption(content, rng)) not in (content, mirrored):
        pass  # the template left something out
    return prompt


def _paraphrase(scene: Scene, rng: torch.Generator) -> str:
    """Colours, shapes and the relation of two objects, in a wording that no training caption has."""
    a, b = (nouns.singular_phrase(ObjectExpectation(obj.shape, obj.colour)) for obj in scene.objects)
    phrases = RELATION_PHRASES[str(scene.relation)]
    rel = phrases[int(torch.randint(len(phrases), (), generator=rng))]
    template = PARAPHRASES[int(torch.randint(len(PARAPHRASES), (), generator=rng))]
    return template.format(a=a, b=b, rel=rel)
