"""Values and sentences in error messages and notices: in one line, of bounded length, every character printable."""

import re
import reprlib
from collections.abc import Sequence

LONGEST = 1000  # characters of a message
LISTED = 10  # names in a message

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def printable(text: str, longest: int = LONGEST) -> str:
    """The text in one line: what cannot be printed is escaped, and a long text is cut in the middle."""
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} ... {text[-longest // 3 :]}"
    line = re.sub(r"\s+", " ", text).strip()
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def shown(value: object) -> str:
    """Any value for a message, as repr() shows it, at most about 80 characters; its type where it has no repr()."""
    try:
        return printable(_REPR.repr(value), 100)
    except Exception:  # a number of more than 4,300 digits, a class whose repr() fails
        return f"a {type(value).__name__} that cannot be shown"


def listed(names: Sequence[str], most: int = LISTED) -> str:
    """Quoted names for a message: the first ones, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more
