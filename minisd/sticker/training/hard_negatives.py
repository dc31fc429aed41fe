"""Captions that are almost true of a picture: what CLIP must learn to tell from the true one.

Without such, a model of pictures and texts stays a bag of words (Yuksekgonul et al. 2022): which colours and things are
named is enough to find the right caption among those of other pictures.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest
from typing import Any

import torch

from minisd.sticker.world.captions import (
    NAMED_SIZES,
    NAMED_STYLES,
    NUMBERS,
    POSITION_WORDS,
    Expectation,
    ThingExpectation,
    describe,
    expectation,
    mention,
)
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS
from minisd.sticker.world.scene import INVERSE, LAYERS, RELATIONS, Scene
from minisd.sticker.world.shapes import THINGS

ATTRIBUTES: dict[str, Sequence[Any]] = {
    "shape": list(THINGS),
    "colour": list(COLOURS),
    "size": NAMED_SIZES,
    "position": list(POSITION_WORDS),
    "style": NAMED_STYLES,
}

NEGATIVES = 3  # untrue captions of each picture's own, in training and when it is measured


def could_both_be_true(first: Expectation, second: Expectation) -> bool:
    """Whether one picture could show both: of two things or of several alike, in either order, no attribute differs."""
    if len(first.things) != len(second.things) or _differ(first.background, second.background):
        return False
    turned = None if second.relation is None else INVERSE[second.relation]
    orders = ((second.things, second.relation), (second.things[::-1], turned))
    return any(
        not _differ(first.relation, relation) and all(map(_could_be_one, first.things, things))
        for things, relation in orders
    )


def _could_be_one(first: ThingExpectation, second: ThingExpectation) -> bool:
    return not any(_differ(getattr(first, name), getattr(second, name)) for name in ATTRIBUTES)


def _differ(first: object, second: object) -> bool:
    """Whether both are said, and not the same."""
    return first is not None and second is not None and first != second


def hard_negatives(wanted: Expectation, generator: torch.Generator) -> list[Expectation]:
    """What no picture that shows `wanted` shows, though it is one change away.

    First the colours swapped, then the relation, then the places, as far as they are said; then other changes of what
    is said, of all kinds by turns, in random order.
    """
    things, relation = wanted.things, wanted.relation
    swapped = [_swapped(wanted, "colour"), _swapped(wanted, "position")]
    if relation is not None:
        swapped.insert(1, replace(wanted, relation=INVERSE[relation]))
    kinds = [[_swapped(wanted, name)] for name in ("shape", "size", "style")]
    for thing in dict.fromkeys(things):
        for name, values in ATTRIBUTES.items():
            if getattr(thing, name) is not None:
                kinds.append([_with(wanted, thing, replace(thing, **{name: value})) for value in values])
    if relation in RELATIONS:  # of two that overlap one may be a little to the left, too
        kinds.append([replace(wanted, relation=other) for other in (*RELATIONS, *LAYERS)])
    if wanted.background is not None:
        kinds.append([replace(wanted, background=other) for other in BACKGROUNDS])
    alone = [Expectation((thing,), None, wanted.background) for thing in things]
    several = [(replace(things[0], position=None),) * number for number in NUMBERS.values()]
    kinds.append([*alone, *(Expectation(each, None, wanted.background) for each in several)])
    turns = zip_longest(*(_shuffled(kind, generator) for kind in _shuffled(kinds, generator)))
    changed = (each for each in chain.from_iterable(turns) if each is not None)
    return [each for each in dict.fromkeys([*swapped, *changed]) if not could_both_be_true(wanted, each)]


def _swapped(wanted: Expectation, name: str) -> Expectation:
    """An attribute of one of two things given to the other, and the other way round."""
    if len(wanted.things) != 2:
        return wanted
    first, second = wanted.things
    mine, others = getattr(first, name), getattr(second, name)
    return replace(wanted, things=(replace(first, **{name: others}), replace(second, **{name: mine})))


def _with(wanted: Expectation, thing: ThingExpectation, other: ThingExpectation) -> Expectation:
    """Another thing in place of one, or of several alike."""
    return replace(wanted, things=tuple(other if each == thing else each for each in wanted.things))


def _shuffled(values: list, generator: torch.Generator) -> list:
    return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]


def caption_and_negatives(scene: Scene, generator: torch.Generator, count: int = NEGATIVES) -> tuple[str, list[str]]:
    """A true caption of a scene and `count` untrue ones, worded alike as far as can be.

    A template may leave out what would make a negative untrue, so each is read back.
    """
    wanted = mention(scene, generator)
    wording = int(torch.randint(2**31 - 1, (), generator=generator))

    def say(what: Expectation) -> str:
        return describe(what, torch.Generator().manual_seed(wording))

    caption = say(wanted)
    said = expectation(caption)
    others = map(say, hard_negatives(wanted, generator))
    untrue = (other for other in others if not could_both_be_true(said, expectation(other)))
    return caption, list(islice(untrue, count))
