"""argparse whose mistakes are InputErrors like all others, and number types that quote what they could not read."""

import argparse
from typing import NoReturn

from minisd.errors import InputError


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, "", False) or action.default == []
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError where argparse would print its usage and exit."""

    def __init__(self, hint: str = "", **options: str | None) -> None:
        """hint: what to say behind each mistake."""
        self.hint = hint
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a mistake."""
        raise InputError(f"{message}; see `{self.prog} --help`{self.hint}")


def whole(text: str) -> int:
    """A whole number in plain decimal digits, with or without a minus."""
    if not text.isascii() or not text.removeprefix("-").isdigit():
        raise InputError(f"{text!r} is not a whole number; write it in digits, such as 20.")
    return int(text)


def real(text: str) -> float:
    """A number in plain decimal notation; its range is checked where it is used."""
    plain = text.isascii() and not text.startswith("+") and "_" not in text
    try:
        return float(text) if plain else _refuse(text)
    except ValueError:
        return _refuse(text)


def _refuse(text: str) -> float:
    raise InputError(f"{text!r} is not a number; write it with a point, such as 7.5.")
