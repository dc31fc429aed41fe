"""Image files: reading them whole, naming them, and writing them completely or not at all."""

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, PngImagePlugin

from minisd._internal import atomic_files
from minisd._internal.user_files import open_regular
from minisd.errors import InputError, OutputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
LARGEST_PIXELS = 89_000_000


def open_image(path: str | Path) -> Image.Image:
    """Read an image file, rotated as its EXIF data says; of an animation the first frame, with a warning.

    Raises InputError for what is no file, for a broken or cut one, and, before decoding, for one that is too large.
    """
    with open_regular(path) as file:
        return decode_image(file, str(path))


def decode_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the image of an open file, as `open_image` does; `name` is that of the file in messages."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            if image.width * image.height > LARGEST_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InputError(f"{name} is {size} pixels, expected at most {LARGEST_PIXELS:,}; make it smaller.")
            several = image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: a photo with a preview
            image.load()
            picture = ImageOps.exif_transpose(image)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders raise many classes for damaged files
        raise InputError(
            f"{name} cannot be read as an image ({error}), expected a complete PNG, JPEG or WebP file."
        ) from error
    if several:
        warnings.warn(f"{name} has several frames; the first one is used.", stacklevel=3)
    return picture


def check_target(path: str | Path, overwrite: bool = False) -> Path:
    """The path, if an image can be written to it. Raises OutputError, before any work is done."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path} has the suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}.")
    atomic_files.check_target(path, overwrite)
    return path


def free_name(folder: Path, stem: str, suffix: str = ".png") -> Path:
    """The first of stem.png, stem-2.png, ... that does not exist yet."""
    path, n = folder / f"{stem}{suffix}", 2
    while os.path.lexists(path):
        path, n = folder / f"{stem}-{n}{suffix}", n + 1
    return path


def save(
    image: Image.Image,
    path: str | Path,
    *,
    overwrite: bool = False,
    settings: Mapping[str, object] | None = None,
    frames: Sequence[Image.Image] = (),
    milliseconds: int = 120,
) -> Path:
    """Write an image; `settings` become text in a PNG file, `frames` are the other frames of a GIF file.

    Raises OutputError as `check_target` does, and if the disk is full; an existing file is then unchanged.
    """
    path = check_target(path, overwrite)
    options: dict[str, object] = {}
    if path.suffix.lower() == ".png" and settings:
        info = PngImagePlugin.PngInfo()
        for key, value in settings.items():
            info.add_itxt(key, str(value))
        options["pnginfo"] = info
    if frames:
        options |= {"save_all": True, "append_images": list(frames), "duration": milliseconds, "loop": 0}
    kind = Image.registered_extensions()[path.suffix.lower()]

    def write(file: BinaryIO) -> None:
        encoded = io.BytesIO()  # because Pillow hides why it cannot write to a disk
        image.save(encoded, format=kind, **options)
        file.write(encoded.getbuffer())

    atomic_files.write_atomically(path, write, overwrite)
    return path
