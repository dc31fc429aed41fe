"""Check the fields of a config dataclass by their annotations: kind, range, length.

width: Size = 768            # Size = Annotated[int, Range(1, 65536)]
channels: tuple[Size, ...]
"""

import types
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin, get_type_hints

from minisd._internal.messages import shown
from minisd.errors import InputError


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a number."""

    low: float
    high: float


Size = Annotated[int, Range(1, 65536)]
Layers = Annotated[int, Range(1, 200)]


class FieldError(InputError):
    """A field of a config has a value that is not allowed; `problem` is the message without the field's name."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field, self.problem = field, f"{shown(value)}, expected {expected}"
        super().__init__(f"{field} is {self.problem}.")


def check_fields(config: Any) -> None:
    """Raise FieldError for the first field whose value has another kind than its annotation, or is out of its range."""
    kind: Any = type(config)
    hints = _hints(kind)
    for each in fields(config):
        value = getattr(config, each.name)
        if not _fits(value, hints[each.name]):
            refuse(config, each.name, _words(hints[each.name]))


def refuse(config: Any, field: str, expected: str) -> NoReturn:
    """Raise FieldError: the field is not what is expected."""
    raise FieldError(field, getattr(config, field), expected)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Annotated:
        limits = arguments[1]
        return _fits(value, arguments[0]) and limits.low <= value <= limits.high
    if origin is tuple:
        if not isinstance(value, tuple) or not value:
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(each, arguments[0]) for each in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:  # NaN and infinity are out of every range
        return type(value) in (int, float)
    return type(value) is hint or value is hint  # a bool is no whole number; None stands for itself


def _words(hint: Any, plural: bool = False) -> str:
    """What an annotation allows, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(each, plural) for each in arguments))
    if origin is Annotated:
        return f"{_words(arguments[0], plural)} in {arguments[1].low:g}..{arguments[1].high:g}"
    if origin is tuple:
        count = "a list of" if arguments[-1] is Ellipsis else f"{len(arguments)}"
        return f"{count} {_words(arguments[0], plural=True)}"
    one = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    many = {int: "whole numbers", float: "numbers", bool: "True or False", str: "texts"}
    return "None" if hint is type(None) or hint is None else (many if plural else one)[hint]
