"""What one thing, or several alike, is called: "a small red star", "an outlined star", "two red star stickers"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.scene import SIZES
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.styles import STYLES

NAMED_SIZES = [size for size in SIZES if size != "medium"]
NAMED_STYLES = [style for style in STYLES if style != "flat"]
STYLE_WORDS: dict[str, list[str]] = {  # around colour and shape; the first is the common one
    "outline": ["outlined {}", "{} outline"],
    "sticker": ["{} sticker", "{} decal"],
}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


@dataclass(frozen=True)
class ThingExpectation:
    """What is asked of one thing; None: left open."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    position: tuple[str, str] | None = None
    style: str | None = None


def plural(noun: str) -> str:
    """Several of a noun."""
    return noun + ("es" if noun.endswith("s") else "s")


_WORDS = {style: [form.replace("{}", "").strip() for form in forms] for style, forms in STYLE_WORDS.items()}
_STYLES = {word: style for style, words in _WORDS.items() for word in words}
_BEFORE = [word for word in _STYLES if f"{word} {{}}" in STYLE_WORDS[_STYLES[word]]]
_AFTER = [word for word in _STYLES if word not in _BEFORE]
_SINGULAR = {plural(noun): noun for noun in ("shape", *THINGS, *_AFTER)}
STYLE_VOCABULARY = {*_STYLES, *map(plural, _AFTER)}
NOUN_VOCABULARY = {"an", "shape", *THINGS, *COLOURS, *NAMED_SIZES, *NUMBERS, *_SINGULAR} | STYLE_VOCABULARY


def one(thing: ThingExpectation, variant: int = 0) -> str:
    """A thing with its article. A style is put in one of its STYLE_WORDS; flat goes without saying."""
    name = _name(thing, variant)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def several(thing: ThingExpectation, count: int, variant: int = 0) -> str:
    """Things alike with their number."""
    number = next((word for word, n in NUMBERS.items() if n == count), "")
    return f"{number} {plural(_name(thing, variant))}".strip()


def _name(thing: ThingExpectation, variant: int) -> str:
    name = " ".join(word for word in (thing.colour, thing.shape or "shape") if word)
    if thing.style in NAMED_STYLES:
        name = STYLE_WORDS[thing.style][variant].format(name)
    return f"{thing.size} {name}" if thing.size else name


def places(words: Sequence[str], name: str) -> list[int]:
    """Where a name begins among words; not where it is part of a longer one ("a star" in "a star sticker")."""
    parts = name.split()
    found = [i for i in range(len(words)) if list(words[i : i + len(parts)]) == parts]
    after = {*_AFTER, *map(plural, _AFTER)}
    return [i for i in found if i + len(parts) == len(words) or words[i + len(parts)] not in after]


def read(words: str) -> ThingExpectation:
    """What a name that PATTERN or SEVERAL_PATTERN matches says."""
    parts = [_SINGULAR.get(word, word) for word in words.split()]
    shape, colour, size = (next((word for word in parts if word in n), None) for n in (THINGS, COLOURS, SIZES))
    style = next((_STYLES[word] for word in parts if word in _STYLES), None)
    return ThingExpectation(shape, colour, size, None, style)


def any_of(names: Sequence[str]) -> str:
    """A regular expression for one of them."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _pattern(noun: str, after: str) -> str:
    size, colour = (rf"(?:(?:{any_of(names)}) )?" for names in (NAMED_SIZES, list(COLOURS)))
    return rf"{size}(?:(?:{any_of(_BEFORE)}) {colour}(?:{noun})|{colour}(?:{noun})|{colour}(?:{after}))"


_SHAPES = ["shape", *THINGS]
PATTERN = rf"(?:(?:an?|the) )?{_pattern(any_of(_SHAPES), f'(?:{any_of(_SHAPES)}) (?:{any_of(_AFTER)})')}"
SEVERAL_PATTERN = rf"(?:{any_of(list(NUMBERS))}) " + _pattern(
    any_of([plural(shape) for shape in _SHAPES]),
    f"(?:{any_of(_SHAPES)}) (?:{any_of([plural(word) for word in _AFTER])})",
)
