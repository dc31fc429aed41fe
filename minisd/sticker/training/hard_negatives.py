"""Hard negatives: untrue captions that differ little from the true one.

Without them CLIP remains a bag of words (Yuksekgonul et al. 2022): the named colours and shapes are enough to find the
right caption among those of other images.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice, zip_longest

import torch

from minisd.sticker.world.captions import (
    ATTRIBUTES,
    NUMBERS,
    Expectation,
    ObjectExpectation,
    parse_caption,
    select_content,
    write_caption,
)
from minisd.sticker.world.palette import BACKGROUNDS
from minisd.sticker.world.scene import DEPTH_RELATIONS, INVERSE_RELATION, RELATIONS, Scene

NEGATIVES_PER_IMAGE = 3  # in training and in evaluation


def compatible(first: Expectation, second: Expectation) -> bool:
    """Whether one image could meet both: under some matching of the objects no attribute that both state differs."""
    if len(first.objects) != len(second.objects) or _differ(first.background, second.background):
        return False
    inverse = None if second.relation is None else INVERSE_RELATION[second.relation]
    orders = ((second.objects, second.relation), (second.objects[::-1], inverse))
    return any(
        _compatible_relations(first.relation, relation) and all(map(_compatible_objects, first.objects, objects))
        for objects, relation in orders
    )


def _compatible_relations(first: str | None, second: str | None) -> bool:
    return not _differ(first, second) or {first, second} in ({"beside", "left of"}, {"beside", "right of"})


def _compatible_objects(first: ObjectExpectation, second: ObjectExpectation) -> bool:
    return not any(_differ(getattr(first, name), getattr(second, name)) for name in ATTRIBUTES)


def _differ(first: object, second: object) -> bool:
    """Whether both values are stated, and differ."""
    return first is not None and second is not None and first != second


def hard_negatives(content: Expectation, generator: torch.Generator) -> list[Expectation]:
    """Expectations one change away from `content` that no image can meet together with it.

    First the colours swapped, then the inverse relation, then the positions swapped, as far as they are stated. Then
    all other single changes, in random order, with a change of each kind before the second of any.
    """
    objects, relation = content.objects, content.relation
    swapped = [_swapped(content, "colour"), _swapped(content, "position")]
    if relation is not None:
        swapped.insert(1, replace(content, relation=INVERSE_RELATION[relation]))
    kinds = [[_swapped(content, name)] for name in ("shape", "size", "style")]
    for obj in dict.fromkeys(objects):
        for name, values in ATTRIBUTES.items():
            if getattr(obj, name) is not None:
                kinds.append([_replaced(content, obj, replace(obj, **{name: value})) for value in values])
    if relation in RELATIONS:  # overlapping objects can also be left of each other, so their relation stays
        kinds.append([replace(content, relation=other) for other in (*RELATIONS, *DEPTH_RELATIONS)])
    if content.background is not None:
        kinds.append([replace(content, background=other) for other in BACKGROUNDS])
    alone = [Expectation((obj,), None, content.background) for obj in objects]
    several = [(replace(objects[0], position=None),) * number for number in NUMBERS.values()]
    kinds.append([*alone, *(Expectation(each, None, content.background) for each in several)])
    turns = zip_longest(*(_shuffled(kind, generator) for kind in _shuffled(kinds, generator)))
    changed = (each for each in chain.from_iterable(turns) if each is not None)
    return [each for each in dict.fromkeys([*swapped, *changed]) if not compatible(content, each)]


def _swapped(content: Expectation, name: str) -> Expectation:
    """The content with an attribute exchanged between its two objects."""
    if len(content.objects) != 2:
        return content
    first, second = content.objects
    values = getattr(first, name), getattr(second, name)
    return replace(content, objects=(replace(first, **{name: values[1]}), replace(second, **{name: values[0]})))


def _replaced(content: Expectation, obj: ObjectExpectation, other: ObjectExpectation) -> Expectation:
    """The content with another object in place of one, or of all that are equal to it."""
    return replace(content, objects=tuple(other if each == obj else each for each in content.objects))


def _shuffled(values: list, generator: torch.Generator) -> list:
    return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]


def caption_and_negatives(
    scene: Scene,
    generator: torch.Generator,
    count: int = NEGATIVES_PER_IMAGE,
    words: Callable[[Expectation, torch.Generator], str] = write_caption,
) -> tuple[str, list[str]]:
    """A true caption of a scene and `count` untrue ones, in the same wording where possible.

    words: writes a caption. A template may leave out the change that makes a negative untrue, so each caption is parsed
    again.
    """
    content = select_content(scene, generator)
    wording = int(torch.randint(2**31 - 1, (), generator=generator))

    def write(content: Expectation) -> str:
        return words(content, torch.Generator().manual_seed(wording))

    caption = write(content)
    stated = parse_caption(caption)
    others = map(write, hard_negatives(content, generator))
    untrue = (other for other in others if not compatible(stated, parse_caption(other)))
    return caption, list(islice(untrue, count))
