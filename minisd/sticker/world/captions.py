"""Captions of scenes, written and parsed with the same table of templates.

An Expectation is the content of a caption and may leave attributes open. `select_content` chooses it for a scene,
`write_caption` puts it into words, `parse_caption` recovers it from the words.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import torch

from minisd.errors import InputError
from minisd.sticker.world import nouns, synonyms
from minisd.sticker.world.nouns import NAMED_SIZES, NAMED_STYLES, NOUN_VOCABULARY, NUMBERS, ObjectExpectation
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS
from minisd.sticker.world.scene import INVERSE_RELATION, Scene, grid_position
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.styles import STYLES

RELATION_PHRASES: dict[str, list[str]] = {  # the first is the common one
    "left of": ["left of", "to the left of"],
    "right of": ["right of", "to the right of"],
    "above": ["above", "over"],
    "below": ["below", "under"],
    "in front of": ["in front of"],
    "behind": ["behind"],
    "beside": ["next to", "beside"],  # left or right of
}
POSITION_PHRASES: dict[tuple[str, str], str] = {
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
# Templates with their weights. A template of weight 0 is parsed but never written: held out. {a} and {b}
# are objects, {pos} and {pos_b} their positions, {rel} is the relation of a to b, {inv} its inverse, {many} several
# objects of one kind.
ONE_OBJECT: dict[str, float] = {
    "{a}": 6,
    "{a} {pos}": 2,
    "there is {a}": 1,
    "there is {a} {pos}": 0.5,
    "a picture of {a}": 1,
    "{pos} there is {a}": 0.5,
}
TWO_OBJECTS: dict[str, float] = {
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
    "{rel} {b} there is {a}": 0,
    "{b} and {a} {rel} it": 0,
}
TWO_CLAUSES: dict[str, float] = {  # only training captions are written with these; prompts of the suites never are
    "a picture of {b} with {a} {rel} it": 1,
    "there is {b} and {a} is {rel} it": 1,
    "there is {b} and {rel} it {a}": 1,
    "{b} and {a} is {rel} it": 1,
    "{b} and there is {a} {rel} it": 1,
}
SEVERAL_OBJECTS: dict[str, float] = {"{many}": 5, "there are {many}": 1, "a picture of {many}": 1}
LISTING = (",", ";", "&", "+")  # may stand for "and"
BACKGROUND_PHRASE = "on a {bg} background"
ATTRIBUTES: dict[str, list[Any]] = {  # of an object, with the values that captions can mention
    "shape": list(SHAPES),
    "colour": list(COLOURS),
    "size": NAMED_SIZES,
    "position": list(POSITION_PHRASES),
    "style": NAMED_STYLES,
}

WORDS: list[str] = sorted(
    {*NOUN_VOCABULARY, *BACKGROUNDS, *synonyms.WORDS}
    | set(" ".join([*chain.from_iterable(RELATION_PHRASES.values()), *POSITION_PHRASES.values()]).split())
    | set(re.sub(r"\{\w+\}", "", " ".join([*ONE_OBJECT, *TWO_OBJECTS, *SEVERAL_OBJECTS, BACKGROUND_PHRASE])).split())
)


@dataclass(frozen=True)
class Expectation:
    """The expected content of an image: exactly these objects; `relation` is that of the first to the second."""

    objects: tuple[ObjectExpectation, ...]
    relation: str | None = None
    background: str | None = None


def expectation_of(scene: Scene) -> Expectation:
    """Everything that a true caption of the scene could mention."""
    objects = tuple(
        ObjectExpectation(
            obj.shape,
            obj.colour,
            obj.size,
            None if scene.alike or scene.overlapping else grid_position(obj.x, obj.y, clearance=0.03),
            obj.style,
        )
        for obj in scene.objects
    )
    return Expectation(objects, scene.relation, scene.background)


def select_content(scene: Scene, rng: torch.Generator) -> Expectation:
    """Choose at random what a caption mentions.

    Colours are dropped with probability 0.15, shapes with 0.1, sizes with 0.3 (medium always), styles with 0.3 (flat
    always). White backgrounds are mentioned in one caption of five, others in six of seven, so that a background which
    is not mentioned is probably white. Several objects of one kind share one description.
    """
    in_style = sum(obj.style in NAMED_STYLES for obj in scene.objects)
    draws = iter(torch.rand(1 + 3 * len(scene.objects) + in_style, generator=rng).tolist())
    named = next(draws) < (0.2 if scene.background == "white" else 0.86)
    whole = expectation_of(scene)
    objects = tuple(
        replace(
            obj,
            shape=obj.shape if next(draws) >= 0.1 else None,
            colour=obj.colour if next(draws) >= 0.15 else None,
            size=obj.size if next(draws) >= 0.3 else None,
            style=obj.style if obj.style and next(draws) >= 0.3 else None,
        )
        for obj in map(ObjectExpectation.nameable, whole.objects[:1] if scene.alike else whole.objects)
    )
    objects *= len(whole.objects) // len(objects)
    return replace(whole, objects=objects, background=scene.background if named else None)


def write_caption(content: Expectation, rng: torch.Generator, templates: Mapping[str, float] | None = None) -> str:
    """Put the content of a caption into words; some templates leave out positions or the relation.

    A flat style is not mentioned. templates: to choose from instead of the common ones, with their weights. Raises
    InputError for a number of objects without a template, for a medium size (captions have no word for it), and for
    an unknown style or relation.
    """
    table = _templates(content) if templates is None else templates
    for obj in content.objects:
        if obj.style not in (None, *STYLES):
            raise InputError(f"write_caption got the style {obj.style!r}; use one of {', '.join(STYLES)}, or None.")
    if content.relation not in (None, *RELATION_PHRASES):
        known = ", ".join(RELATION_PHRASES)
        raise InputError(f"write_caption got the relation {content.relation!r}; use one of {known}, or None.")
    if any(obj.size not in (None, *NAMED_SIZES) for obj in content.objects):
        raise InputError(f"write_caption got a size without a word; use one of {', '.join(NAMED_SIZES)}, or None.")
    u, v = torch.rand(2, generator=rng).tolist()
    variant = 0 if v < 0.7 else -1
    phrases = {name: nouns.singular_phrase(obj, variant) for name, obj in zip("ab", content.objects, strict=False)}
    phrases["many"] = nouns.plural_phrase(content.objects[0], len(content.objects), variant)
    for name, obj in zip(("pos", "pos_b"), content.objects, strict=False):
        if obj.position is not None:
            phrases[name] = POSITION_PHRASES[obj.position]
    if content.relation is not None:
        phrases["rel"] = RELATION_PHRASES[content.relation][variant]
        phrases["inv"] = RELATION_PHRASES[INVERSE_RELATION[content.relation]][variant]
    usable = {t: weight for t, weight in table.items() if set(re.findall(r"\{(\w+)\}", t)) <= set(phrases)}
    totals = list(accumulate(usable.values()))
    template = next(t for t, total in zip(usable, totals, strict=True) if u * totals[-1] < total)
    words = template.format_map(phrases)
    return words if content.background is None else f"{words} {BACKGROUND_PHRASE.format(bg=content.background)}"


def noun_indices(text: str, content: Expectation) -> list[list[int]]:
    """For each object, the indices of the words that name it in a caption with this content, without articles.

    A punctuation mark counts as a word. One entry for each object, or a single one for several of one kind; empty where
    two objects have the same name. Raises InputError for a text that no template matches.
    """
    read, spans = _read(text)
    if len(spans) == 1:
        return spans
    names, found = ([replace(obj.nameable(), position=None) for obj in each.objects] for each in (content, read))
    if names[0] == names[1]:
        return [[], []]
    return [spans[found.index(name)] for name in names]


def _templates(content: Expectation) -> dict[str, float]:
    """The templates for some content; several equal objects without a relation are counted."""
    count = len(content.objects)
    alike = count > 1 and len(set(content.objects)) == 1 and content.objects[0].position is None
    if count in NUMBERS.values() and alike and content.relation is None:
        return SEVERAL_OBJECTS
    if count not in (1, 2):
        raise InputError(f"write_caption got {count} objects; give one or two, or 2 to 5 of one kind.")
    return ONE_OBJECT if count == 1 else TWO_OBJECTS


def sample_caption(scene: Scene, rng: torch.Generator) -> str:
    """A random true caption in lower case, such as "a red circle above a blue square"."""
    return write_caption(select_content(scene, rng), rng)


def parse_caption(text: str) -> Expectation:
    """Parse a caption of this grammar, or one in the words of `synonyms`; case, punctuation and articles do not matter.

    A few captions can be parsed that describe no scene of the world: an outlined circle or ring, a small outline (see
    `styles.styles_for`), and an object in front of another one of the same colour.

    Raises InputError for a text that no template matches.
    """
    return _read(text)[0]


def _read(text: str) -> tuple[Expectation, list[list[int]]]:
    """The content of a caption, and the indices of the words and punctuation marks that name each object."""
    typed = re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())
    words = [i for i, word in enumerate(typed) if word.isalnum() and word not in synonyms.ARTICLES]
    for kept in (sorted([*words, *(i for i, mark in enumerate(typed) if mark in LISTING)]), words):
        sentence = _plain(" ".join("and" if typed[i] in LISTING else typed[i] for i in kept))
        found = next(filter(None, (pattern.fullmatch(sentence) for pattern in _PATTERNS)), None)
        if found is not None:
            named = [name for name in ("a", "b", "many") if name in found.groupdict()]
            first = [sentence[: found.start(name)].count(" ") for name in named]
            return _content(found), [
                kept[i : i + len(found[name].split())] for i, name in zip(first, named, strict=True)
            ]
    unknown = [word for word in typed if word.isalnum() and word not in WORDS]
    why = f"unknown words {', '.join(map(repr, unknown))}" if unknown else "unknown word order"
    raise InputError(f"the checker cannot read {text!r} ({why}); write it like 'a red circle above a blue square'.")


def _content(found: re.Match[str]) -> Expectation:
    """The content of a caption that one of the patterns matches."""
    parts = found.groupdict()
    objects = [nouns.parse_phrase(parts[name]) for name in ("a", "b", "many") if name in parts]
    if "many" in parts:
        objects *= NUMBERS[parts["many"].split()[0]]
    for k, name in enumerate(("pos", "pos_b")):
        if name in parts:
            objects[k] = replace(objects[k], position=_POSITIONS[parts[name]])
    relation = None
    if parts.get("rel") is not None:
        relation = _RELATIONS[parts["rel"]]
    elif parts.get("inv") is not None:
        relation = INVERSE_RELATION[_RELATIONS[parts["inv"]]]
    return Expectation(tuple(objects), relation, parts["bg"])


def _plain(phrase: str) -> str:
    """A phrase without articles, in the captions' own words."""
    words = (word for word in phrase.split() if word not in synonyms.ARTICLES)
    return " ".join(synonyms.CAPTION_WORD.get(word, word) for word in words)


def _phrases(own: Mapping[Any, list[str]], others: Mapping[str, list[str]]) -> dict[str, Any]:
    """The value that each phrase stands for, its synonyms included."""
    known = {_plain(phrase): value for value, phrases in own.items() for phrase in phrases}
    more = {_plain(other): known[_plain(phrase)] for phrase, phrases in others.items() for other in phrases}
    return more | known


_RELATIONS = _phrases(RELATION_PHRASES, synonyms.RELATION_SYNONYMS)
_POSITIONS = _phrases({place: [phrase] for place, phrase in POSITION_PHRASES.items()}, synonyms.POSITION_SYNONYMS)
_REQUEST = f"(?:(?:{nouns.any_of([_plain(request) for request in synonyms.REQUESTS])}) )?"
_BACKGROUND = rf"(?: on (?P<bg>{nouns.any_of(list(BACKGROUNDS))})(?: background)?)?"


def _pattern(template: str) -> re.Pattern[str]:
    slots = {"a": nouns.PATTERN, "b": nouns.PATTERN, "many": nouns.SEVERAL_PATTERN}
    slots["rel"] = slots["inv"] = nouns.any_of(list(_RELATIONS))
    slots["pos"] = slots["pos_b"] = nouns.any_of(list(_POSITIONS))
    body = _plain(template).format_map({name: f"(?P<{name}>{options})" for name, options in slots.items()})
    joined = re.sub(" (and|with) ", "(?: and| with| and with) ", body)
    return re.compile(f"{_REQUEST}{joined}{_BACKGROUND}(?: please)?")


_PATTERNS = [_pattern(template) for template in (*ONE_OBJECT, *TWO_OBJECTS, *TWO_CLAUSES, *SEVERAL_OBJECTS)]
