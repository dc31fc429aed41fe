"""Read the files that a user names: regular files alone, because a pipe would wait and a device never ends."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from minisd._internal.messages import shown
from minisd.errors import InputError

LARGEST_TEXT = 10_000_000  # bytes


def open_regular(path: str | Path) -> BinaryIO:
    """The file, open for reading.

    Raises InputError: there is none, it cannot be read, or it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode  # before opening: opening a pipe would wait, a device may act
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"there is no file {_name(path)}; check its name.") from None
    except (OSError, ValueError, TypeError) as error:  # a name that is too long, or holds NUL; no permission
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{_name(path)} cannot be read ({reason}), expected a file; check its name.") from error
    what = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
    raise InputError(f"{_name(path)} cannot be read, it is {what}; expected a regular file.")


def read_text(path: str | Path) -> str:
    """The UTF-8 text of a file, see `decode`. Raises InputError, as `open_regular` does."""
    with open_regular(path) as file:
        return decode(read_limited(file, _name(path)), _name(path))


def read_limited(file: BinaryIO, name: str) -> bytes:
    """The content of an open file. Raises InputError where it is too long for a text of a person, or cannot be read."""
    try:
        raw = file.read(LARGEST_TEXT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error}); try again.") from error
    if len(raw) > LARGEST_TEXT:
        raise InputError(f"{name} is longer than {LARGEST_TEXT / 1e6:.0f} MB, expected a short text.")
    return raw


def decode(raw: bytes, name: str) -> str:
    """UTF-8 bytes -> text, without a byte-order mark. Raises InputError, which names the text, for other encodings."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text at byte {error.start}; save it as UTF-8.") from error
    if "\0" in text:  # so does UTF-16 without a mark
        raise InputError(f"{name} holds NUL at character {text.index(chr(0))}, expected UTF-8 text; save it as UTF-8.")
    return text


def _name(path: object) -> str:
    return str(path) if isinstance(path, str | Path) and str(path).isprintable() else shown(path)
