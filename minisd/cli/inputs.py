"""What words on the command line stand for: prompts, files with a value after a colon, names of files."""

import re
import sys
import unicodedata
from pathlib import Path

from minisd.errors import InputError


def read_prompt(text: str) -> str:
    """The prompt itself, or what @FILE or - (standard input) hold, as UTF-8."""
    if text == "-":
        raw, where = sys.stdin.buffer.read(), "standard input"
    elif text.startswith("@"):
        where = text[1:]
        try:
            raw = Path(where).read_bytes()
        except OSError as error:
            raise InputError(f"{where!r} cannot be read ({error.strerror}); a prompt after @ is a file.") from error
    else:
        return text
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text at byte {error.start}; save it as UTF-8.") from error


def split_option(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:VALUE; either may have colons: the longest part that is a path here is the file."""
    colons = [len(text), *(match.start() for match in reversed(list(re.finditer(":", text))))]
    for end in colons:
        if Path(text[:end]).exists():
            return Path(text[:end]), text[end + 1 :] or None
    raise InputError(f"{text!r}: no such file; name an adapter's file, and after a colon what to set.")


def file_stem(prompt: str) -> str:
    """A file name of at most 60 plain characters that reminds of the prompt."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")
    reserved = re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", stem)  # device names on Windows
    return "picture" if not stem or reserved else stem


def numbered(path: Path, k: int, count: int) -> Path:
    """The name of picture k of `count`: as it is where there is but one."""
    return path if count == 1 else path.with_stem(f"{path.stem}-{k + 1}")
