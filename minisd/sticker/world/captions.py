"""From scenes to words and back: one table of templates writes the captions and reads them.

What a caption says stands between the two: an Expectation, which may leave things open. `mention` decides
what is said, `describe` words it, `expectation` reads it back.
"""

import re
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from minisd.errors import InputError
from minisd.sticker.world import nouns
from minisd.sticker.world.nouns import NAMED_SIZES, NAMED_STYLES, NOUN_VOCABULARY, NUMBERS, ThingExpectation
from minisd.sticker.world.palette import BACKGROUNDS
from minisd.sticker.world.scene import INVERSE, Scene, position
from minisd.sticker.world.styles import STYLES

RELATION_WORDS: dict[str, list[str]] = {  # the first is the common one
    "left of": ["left of", "to the left of"],
    "right of": ["right of", "to the right of"],
    "above": ["above", "over"],
    "below": ["below", "under"],
    "in front of": ["in front of"],
    "behind": ["behind"],
}
POSITION_WORDS: dict[tuple[str, str], str] = {
    ("top", "left"): "in the top left",
    ("top", "middle"): "at the top",
    ("top", "right"): "in the top right",
    ("middle", "left"): "on the left",
    ("middle", "middle"): "in the middle",
    ("middle", "right"): "on the right",
    ("bottom", "left"): "in the bottom left",
    ("bottom", "middle"): "at the bottom",
    ("bottom", "right"): "in the bottom right",
}
# Templates with their weights; weight 0 is read, never written: a paraphrase held out. {a} and {b} are things,
# {pos} and {pos_b} their places, {rel} is how a stands to b, {inv} how b stands to a, {many} several of a kind.
ONE: dict[str, float] = {
    "{a}": 6,
    "{a} {pos}": 2,
    "there is {a}": 1,
    "there is {a} {pos}": 0.5,
    "a picture of {a}": 1,
    "{pos} there is {a}": 0.5,
}
TWO: dict[str, float] = {
    "{a} {rel} {b}": 8,
    "{b} {inv} {a}": 4,
    "{a} is {rel} {b}": 1,
    "{rel} {b} is {a}": 1,
    "there is {a} {rel} {b}": 1,
    "a picture of {a} {rel} {b}": 1,
    "{a} with {b} {inv} it": 1,
    "{b} and {rel} it {a}": 1,
    "{a} and {b}": 1,
    "{a} {pos} and {b} {pos_b}": 5,
    "{pos} {a} and {pos_b} {b}": 1,
    "there is {b} with {a} {rel} it": 0,
}
SEVERAL: dict[str, float] = {"{many}": 5, "there are {many}": 1, "a picture of {many}": 1}
BACKGROUND = "on a {bg} background"


_PHRASES = {phrase: name for name, phrases in RELATION_WORDS.items() for phrase in phrases}
_PLACES = {phrase: place for place, phrase in POSITION_WORDS.items()}
WORDS: list[str] = sorted(
    {*NOUN_VOCABULARY, *BACKGROUNDS}
    | set(" ".join([*_PHRASES, *_PLACES]).split())
    | set(re.sub(r"\{\w+\}", "", " ".join([*ONE, *TWO, *SEVERAL, BACKGROUND])).split())
)


@dataclass(frozen=True)
class Expectation:
    """What is asked of a picture: these things alone; `relation` is how the first stands to the second."""

    things: tuple[ThingExpectation, ...]
    relation: str | None = None
    background: str | None = None


def expectation_of(scene: Scene) -> Expectation:
    """Everything that a caption of the scene could truly say."""
    things = tuple(
        ThingExpectation(
            thing.shape,
            thing.colour,
            thing.size,
            None if scene.alike or scene.overlapping else position(thing.x, thing.y, clearance=0.03),
            thing.style,
        )
        for thing in scene.things
    )
    return Expectation(things, scene.relation, scene.background)


def mention(scene: Scene, rng: torch.Generator) -> Expectation:
    """Leave out what a caption will not say: colours (p = .15), shapes (.1), sizes (.3; medium always) and
    styles (.3; flat always).

    White backgrounds are named in one caption of five, others in six of seven: unnamed, it is likely white.
    Of several of a kind the same is said.
    """
    in_style = sum(thing.style in NAMED_STYLES for thing in scene.things)
    draws = iter(torch.rand(1 + 3 * len(scene.things) + in_style, generator=rng).tolist())
    named = next(draws) < (0.2 if scene.background == "white" else 0.86)
    whole = expectation_of(scene)
    things = tuple(
        replace(
            thing,
            shape=thing.shape if next(draws) >= 0.1 else None,
            colour=thing.colour if next(draws) >= 0.15 else None,
            size=thing.size if next(draws) >= 0.3 and thing.size in NAMED_SIZES else None,
            style=thing.style if thing.style in NAMED_STYLES and next(draws) >= 0.3 else None,
        )
        for thing in (whole.things[:1] if scene.alike else whole.things)
    )
    things *= len(whole.things) // len(things)
    return replace(whole, things=things, background=scene.background if named else None)


def describe(wanted: Expectation, rng: torch.Generator) -> str:
    """Word an expectation of one or two things, or of several alike; a template may leave out place or relation.

    A flat style is not said. Raises InputError for another number of things, for a medium size, which has no name, and
    for a style or a relation that is none.
    """
    table = _table(wanted)
    for thing in wanted.things:
        if thing.style not in (None, *STYLES):
            raise InputError(f"describe got the style {thing.style!r}; use one of {', '.join(STYLES)}, or None")
    if wanted.relation not in (None, *RELATION_WORDS):
        raise InputError(f"describe got the relation {wanted.relation!r}; use one of {', '.join(RELATION_WORDS)}")
    if any(thing.size not in (None, *NAMED_SIZES) for thing in wanted.things):
        raise InputError(f"describe got a size without a name; use one of {', '.join(NAMED_SIZES)}, or None")
    u, v = torch.rand(2, generator=rng).tolist()
    variant = 0 if v < 0.7 else -1
    known = {name: nouns.one(thing, variant) for name, thing in zip("ab", wanted.things, strict=False)}
    known["many"] = nouns.several(wanted.things[0], len(wanted.things), variant)
    for name, thing in zip(("pos", "pos_b"), wanted.things, strict=False):
        if thing.position is not None:
            known[name] = POSITION_WORDS[thing.position]
    if wanted.relation is not None:
        known["rel"] = RELATION_WORDS[wanted.relation][variant]
        known["inv"] = RELATION_WORDS[INVERSE[wanted.relation]][variant]
    usable = {t: weight for t, weight in table.items() if set(re.findall(r"\{(\w+)\}", t)) <= set(known)}
    totals = list(accumulate(usable.values()))
    template = next(t for t, total in zip(usable, totals, strict=True) if u * totals[-1] < total)
    words = template.format_map(known)
    return words if wanted.background is None else f"{words} {BACKGROUND.format(bg=wanted.background)}"


def noun_places(text: str, wanted: Expectation) -> list[list[int]]:
    """Which words of a caption name each thing of the expectation that it words, without articles, counted from 0.

    One entry for each thing, or one for several alike; empty where two are called the same.
    """
    words = text.split()
    if _table(wanted) is SEVERAL:
        called = [{nouns.several(wanted.things[0], len(wanted.things), variant) for variant in (0, -1)}]
    else:
        called = [{nouns.one(thing, variant) for variant in (0, -1)} for thing in wanted.things]
    found: list[list[int]] = []
    for names in called:
        spans = [range(i, i + len(name.split())) for name in names for i in nouns.places(words, name)]
        alone = called.count(names) == 1
        found.append([i for span in spans for i in span if alone and words[i] not in ("a", "an")])
    return found


def _table(wanted: Expectation) -> dict[str, float]:
    """The templates for an expectation; two things alike that stand in no relation are counted."""
    count = len(wanted.things)
    alike = count > 1 and len(set(wanted.things)) == 1 and wanted.things[0].position is None
    if count in NUMBERS.values() and alike and wanted.relation is None:
        return SEVERAL
    if count not in (1, 2):
        raise InputError(f"describe got {count} things; captions have words for one or two, or for 2 to 5 alike")
    return ONE if count == 1 else TWO


def caption(scene: Scene, rng: torch.Generator) -> str:
    """A true sentence about the scene, in lower case, such as "a red circle above a blue square"."""
    return describe(mention(scene, rng), rng)


def expectation(prompt: str) -> Expectation:
    """Read a caption of our own grammar, whatever its case, spacing and full stops, with or without articles.

    Some can be read of which the world has no picture: an outlined circle or ring, a small outline (see
    `styles.styles_for`), and a thing in front of another of its colour.

    Raises InputError for a prompt that no template matches.
    """
    words = " ".join(re.sub(r"[.,!]", " ", prompt.lower()).split())
    for pattern in _PATTERNS:
        found = pattern.fullmatch(words)
        if found is None:
            continue
        said = found.groupdict()
        things = [nouns.read(said[name]) for name in "ab" if name in said]
        if "many" in said:
            number, noun = said["many"].split(maxsplit=1)
            things = [nouns.read(noun)] * NUMBERS[number]
        for k, name in enumerate(("pos", "pos_b")):
            if name in said:
                things[k] = replace(things[k], position=_PLACES[said[name]])
        relation = None
        if said.get("rel") is not None:
            relation = _PHRASES[said["rel"]]
        elif said.get("inv") is not None:
            relation = INVERSE[_PHRASES[said["inv"]]]
        return Expectation(tuple(things), relation, said["bg"])
    unknown = [word for word in words.split() if word not in WORDS]
    why = f"it does not know {', '.join(map(repr, unknown))}" if unknown else "the words are in an unknown order"
    raise InputError(f"the checker cannot read {prompt!r}: {why}; write it like 'a red circle above a blue square'")


def _pattern(template: str) -> re.Pattern[str]:
    holes = {"a": nouns.PATTERN, "b": nouns.PATTERN, "many": nouns.SEVERAL_PATTERN}
    holes["rel"] = holes["inv"] = nouns.any_of(list(_PHRASES))
    holes["pos"] = holes["pos_b"] = nouns.any_of(list(_PLACES))
    body = template.format_map({name: f"(?P<{name}>{options})" for name, options in holes.items()})
    return re.compile(f"{body}(?: on an? (?P<bg>{nouns.any_of(list(BACKGROUNDS))}) background)?")


_PATTERNS = [_pattern(template) for template in (*ONE, *TWO, *SEVERAL)]
