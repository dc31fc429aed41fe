"""Other words for what captions say, as people type them: synonyms, requests such as "draw a ...", commas, no articles.

`parse_caption` reads them. `rephrase` writes them, so that the text encoder and the UNet learn what they mean.
"""

import re
from collections.abc import Sequence
from itertools import chain

import torch

ARTICLES = ("a", "an", "the")
REQUESTS = ("draw", "draw me", "please draw", "can you draw", "paint", "show me", "make", "create", "i want")
NOUN_SYNONYMS: dict[str, list[str]] = {
    "circle": ["disc", "disk", "dot"],
    "square": ["box"],
    "ring": ["hoop"],
    "cross": ["plus"],
    "diamond": ["rhombus"],
    "shape": ["thing", "object"],
}
SYNONYMS: dict[str, list[str]] = {  # one word for one word
    **NOUN_SYNONYMS,
    "large": ["big", "huge"],
    "small": ["little", "tiny"],
    "purple": ["violet"],
    "gray": ["grey"],
    "two": ["2"],
    "three": ["3"],
    "four": ["4"],
    "five": ["5"],
    "below": ["beneath", "underneath"],
    "middle": ["center", "centre"],
    "picture": ["image", "drawing"],
}
RELATION_SYNONYMS: dict[str, list[str]] = {
    "above": ["on top of"],
    "to the left of": ["on the left of", "next to", "beside"],
    "to the right of": ["on the right of", "next to", "beside"],
}
POSITION_SYNONYMS: dict[str, list[str]] = {
    **{
        f"in the {y} {x}": [f"in the {y} {x} corner", f"in the {er} {x} corner", f"in the {er} {x}", f"at the {y} {x}"]
        for y, er in (("top", "upper"), ("bottom", "lower"))
        for x in ("left", "right")
    },
    "on the left": ["on the left side", "at the left"],
    "on the right": ["on the right side", "at the right"],
}
PHRASE_SYNONYMS = RELATION_SYNONYMS | POSITION_SYNONYMS


def pluralise(noun: str) -> str:
    """The plural of a noun."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


SYNONYMS |= {pluralise(noun): [pluralise(other) for other in others] for noun, others in NOUN_SYNONYMS.items()}
CAPTION_WORD = {other: word for word, others in SYNONYMS.items() for other in others}  # which a synonym stands for
WORDS = set(" ".join([*CAPTION_WORD, *REQUESTS, *chain.from_iterable(PHRASE_SYNONYMS.values())]).split())


def rephrase(caption: str, rng: torch.Generator) -> str:
    """Put a caption as people type prompts.

    Its content stays, except that "left of" and "right of" may become "next to", which says less.
    """
    request, article, joined, phrase = torch.rand(4, generator=rng).tolist()
    if phrase < 0.5:
        for known, others in PHRASE_SYNONYMS.items():
            pattern = rf"\b(?:{known}|{known.removeprefix('to the ')})\b(?! of)"
            caption = re.sub(pattern, _pick(others, 2 * phrase), caption)
    words = caption.split()
    for i, u in enumerate(torch.rand(len(words), generator=rng).tolist()):
        if words[i] in SYNONYMS and u < 0.5:
            words[i] = _pick(SYNONYMS[words[i]], 2 * u)
    text = " ".join(words)
    if joined < 0.45:
        others = [", ", ", and "] if " is " in text else [", ", ", and ", " with "]
        text = re.sub(" and (?=an? |the )", _pick(others, joined / 0.45), text)
    if joined > 0.8:
        text = re.sub(r" on an? (\w+) background$", r" on \1", text)
    is_name = text.split()[0] in ("a", "an", *SYNONYMS, *CAPTION_WORD) and " is " not in text
    if request < 0.5 and is_name:
        text = f"{_pick(REQUESTS, 2 * request)} {text}"
    elif request > 0.9:
        text = f"{text} please"
    if article < 0.3:
        return re.sub(r"\b(?:an?|the) ", "", text)
    if article < 0.4:
        return re.sub(r"\ban? ", "the ", text)
    return re.sub(r"\ban?(?= ([a-z]))", lambda found: "an" if found[1] in "aeiou" else "a", text)


def _pick(options: Sequence[str], u: float) -> str:
    return options[min(int(u * len(options)), len(options) - 1)]
