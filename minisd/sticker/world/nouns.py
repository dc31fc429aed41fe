"""Noun phrases for objects: "a small red star", "an outlined star", "two red star stickers"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.scene import SIZES
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.styles import STYLES
from minisd.sticker.world.synonyms import pluralise

NAMED_SIZES = [size for size in SIZES if size != "medium"]
NAMED_STYLES = [style for style in STYLES if style != "flat"]
STYLE_WORDS: dict[str, list[str]] = {  # around colour and shape; the first form is the common one
    "outline": ["outlined {}", "{} outline"],
    "sticker": ["{} sticker", "{} decal"],
}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


@dataclass(frozen=True)
class ObjectExpectation:
    """The expected attributes of one object; None where any value is accepted."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    position: tuple[str, str] | None = None
    style: str | None = None

    def nameable(self) -> Self:
        """Without a medium size and a flat style, which captions do not mention."""
        size = self.size if self.size in NAMED_SIZES else None
        style = self.style if self.style in NAMED_STYLES else None
        return replace(self, size=size, style=style)


_WORDS = {style: [form.replace("{}", "").strip() for form in forms] for style, forms in STYLE_WORDS.items()}
_STYLES = {word: style for style, words in _WORDS.items() for word in words}
_BEFORE = [word for word in _STYLES if f"{word} {{}}" in STYLE_WORDS[_STYLES[word]]]
_AFTER = [word for word in _STYLES if word not in _BEFORE]
_SINGULAR = {pluralise(noun): noun for noun in ("shape", *SHAPES, *_AFTER)}
STYLE_VOCABULARY = {*_STYLES, *map(pluralise, _AFTER)}
NOUN_VOCABULARY = {"an", "shape", *SHAPES, *COLOURS, *NAMED_SIZES, *NUMBERS, *_SINGULAR} | STYLE_VOCABULARY


def singular_phrase(obj: ObjectExpectation, variant: int = 0) -> str:
    """The phrase for one object, with its article. variant: index into STYLE_WORDS; a flat style is not mentioned."""
    name = _name(obj, variant)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural_phrase(obj: ObjectExpectation, count: int, variant: int = 0) -> str:
    """The phrase for `count` objects of one kind."""
    number = next((word for word, n in NUMBERS.items() if n == count), "")
    return f"{number} {pluralise(_name(obj, variant))}".strip()


def _name(obj: ObjectExpectation, variant: int) -> str:
    name = " ".join(word for word in (obj.colour, obj.shape or "shape") if word)
    if obj.style in NAMED_STYLES:
        name = STYLE_WORDS[obj.style][variant].format(name)
    return f"{obj.size} {name}" if obj.size else name


def parse_phrase(phrase: str) -> ObjectExpectation:
    """The attributes in a phrase that PATTERN, or SEVERAL_PATTERN without its number, matches."""
    parts = [_SINGULAR.get(word, word) for word in phrase.split()]
    shape, colour, size = (next((word for word in parts if word in n), None) for n in (SHAPES, COLOURS, SIZES))
    style = next((_STYLES[word] for word in parts if word in _STYLES), None)
    return ObjectExpectation(shape, colour, size, None, style)


def any_of(names: Sequence[str]) -> str:
    """A regular expression that matches one of the names."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _pattern(noun: str, after: str) -> str:
    size, colour = (rf"(?:(?:{any_of(names)}) )?" for names in (NAMED_SIZES, list(COLOURS)))
    return rf"{size}(?:(?:{any_of(_BEFORE)}) {colour}(?:{noun})|{colour}(?:{noun})|{colour}(?:{after}))"


_NOUNS = ["shape", *SHAPES]
PATTERN = _pattern(any_of(_NOUNS), f"(?:{any_of(_NOUNS)}) (?:{any_of(_AFTER)})")
SEVERAL_PATTERN = rf"(?:{any_of(list(NUMBERS))}) " + _pattern(
    any_of([pluralise(noun) for noun in _NOUNS]),
    f"(?:{any_of(_NOUNS)}) (?:{any_of([pluralise(word) for word in _AFTER])})",
)
