"""Read the values of arguments and options: prompts, files with a value after a colon; make names for files."""

import os
import re
import sys
import unicodedata
from pathlib import Path

from PIL import Image

from minisd import images
from minisd._internal.user_files import decode, read_limited, read_text
from minisd.errors import InputError


def read_prompt(text: str) -> str:
    """The text itself; for @FILE and for - (standard input) their content in UTF-8. Raises InputError."""
    if text == "-":
        if sys.stdin is None:
            raise InputError("the prompt is -, but standard input is closed; give the prompt itself, or @FILE.")
        return decode(read_limited(sys.stdin.buffer, "standard input"), "standard input").strip()
    return read_text(text[1:]).strip() if text.startswith("@") else text


def split_option(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:VALUE, split. Both may contain colons: FILE is the longest part that exists. Raises InputError."""
    colons = [len(text), *(match.start() for match in reversed(list(re.finditer(":", text))))]
    for end in colons:
        if os.path.exists(text[:end]):  # unlike Path.exists, False for a name that is too long
            return Path(text[:end]), text[end + 1 :] or None
    raise InputError(f"{text!r}: no such file; expected the file of an adapter, as FILE or FILE:VALUE.")


def file_stem(prompt: str) -> str:
    """A file name without suffix made from the prompt: at most 60 ASCII letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")
    reserved = re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", stem)  # device names on Windows
    return "picture" if not stem or reserved else stem


def numbered(path: Path, k: int, count: int) -> Path:
    """The path of image k: numbered from 1, and unchanged for a single image."""
    return path if count == 1 else path.with_stem(f"{path.stem}-{k + 1}")


def read_image(path: Path) -> Image.Image:
    """An image file; one that was enlarged when it was saved, as its settings say, in its own size again."""
    image = images.open_image(path)
    scale = str(image.info.get("scale", "")) if image.info.get("software") == "minisd" else ""
    if not re.fullmatch("[0-9]{1,2}", scale) or int(scale) < 2 or image.width % int(scale) or image.height % int(scale):
        return image
    return image.resize((image.width // int(scale), image.height // int(scale)), Image.Resampling.NEAREST)
