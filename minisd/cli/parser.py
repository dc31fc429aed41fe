"""A parser for one command: every mistake is an InputError of one sentence that names the nearest option."""

import argparse
import re
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from minisd.cli.option_names import option_of
from minisd.errors import InputError

OPTION = re.compile(r"--?[A-Za-z][\w-]*")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows only defaults that inform, and keeps indented paragraphs of a description as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        uninformative = action.default is False or action.default in (None, "", [], argparse.SUPPRESS)
        return action.help if uninformative else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        def fill(paragraph: str) -> str:
            return textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent)

        return "\n\n".join(each if each.startswith(" ") else fill(each) for each in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError where argparse would print its usage and exit."""

    def __init__(self, prog: str, description: str = "", meant: str = "") -> None:
        """meant: the command that the user may have mistyped; mistakes name it."""
        super().__init__(
            prog=prog, description=description, formatter_class=_Formatter, add_help=False, allow_abbrev=False
        )
        self.meant = meant

    @property
    def option_names(self) -> list[str]:
        """The options of this command, such as --steps."""
        return list(self._option_string_actions)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of arguments and options. Raises InputError."""
        for text in takewhile(lambda each: each != "--", argv):
            name = text.partition("=")[0]
            if OPTION.fullmatch(name) and not self._knows(name):
                self._refuse_option(name)
        values, unexpected = self.parse_known_args(argv)
        if unexpected:
            quotes = "" if self.meant else "; put a text of several words in quotes"
            self.error(f"unexpected {' '.join(unexpected)!r}{quotes}")
        return values

    def error(self, message: str) -> NoReturn:
        """Raise the message of argparse as an InputError."""
        self._refuse(message.removeprefix("argument "))

    def format_help(self) -> str:
        """The help text, which begins with a usage of one line."""
        if self.usage is None:
            self.usage = " ".join(["%(prog)s", *self._positional_names(), "[options]"])
        return super().format_help()

    def _knows(self, name: str) -> bool:
        """Whether this is an option, or -o with its value attached (but not -output for --output)."""
        attached = not name.startswith("--") and name[:2] in self.option_names and f"-{name}" not in self.option_names
        return attached or name in self.option_names

    def _refuse_option(self, name: str) -> NoReturn:
        bare = name.lstrip("-")
        if bare in self._positional_names():
            self._refuse(f"there is no option {name}; give the {bare} without it")
        by_argument = option_of(bare.replace("-", "_"))
        if by_argument in self.option_names:
            self._refuse(f"there is no option {name}", by_argument)
        longer = [option for option in self.option_names if option.startswith(f"--{bare}")]
        nearest = longer if len(longer) == 1 else get_close_matches(f"--{bare}", self.option_names, n=1)
        self._refuse(f"there is no option {name}", *nearest)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """What argparse calls to check a value against the choices of its option."""
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.dest
            nearest = get_close_matches(str(value), action.choices, n=1)
            self._refuse(f"{name} is {value!r}, expected one of {', '.join(action.choices)}", *nearest)

    def _refuse(self, message: str, *nearest: str) -> NoReturn:
        meant = [*nearest, *([f"`{self.meant}`"] if self.meant else [])]
        hint = f"did you mean {' or '.join(meant)}?" if meant else f"see `{self.prog} --help`."
        raise InputError(f"{message.removesuffix('.')}; {hint}")

    def _positional_names(self) -> list[str]:
        return [action.dest for action in self._get_positional_actions()]


class NumberError(InputError, argparse.ArgumentTypeError):
    """A text that is not a number; argparse shows the message of an ArgumentTypeError as it is."""


def whole(text: str) -> int:
    """A whole number in plain decimal digits, with or without a minus."""
    if not text.isascii() or not text.removeprefix("-").isdigit():
        raise NumberError(f"{text!r} is not a whole number; write it in digits, such as 20.")
    return int(text)


def real(text: str) -> float:
    """A number in plain decimal notation; its range is checked where it is used."""
    error = NumberError(f"{text!r} is not a number; write it with a point, such as 7.5.")
    if not text.isascii() or text.startswith("+") or "_" in text:
        raise error
    try:
        return float(text)
    except ValueError:
        raise error from None
