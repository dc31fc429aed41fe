"""Read images with captions from a folder: a text file beside each image, or a metadata file as on the hub.

In the hub's form ("imagefolder"), `metadata.jsonl` or `metadata.csv` has a row for each image, with the columns
`file_name`, relative to the folder, and `text`.
"""

import csv
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image, ImageOps
from torch import Tensor

from minisd import images
from minisd._internal.large_tensors import gathered
from minisd._internal.messages import listed, shown
from minisd._internal.user_files import read_text
from minisd.errors import InputError

METADATA = ("metadata.jsonl", "metadata.csv")


class CaptionedImages(NamedTuple):
    """Training images: pixels (N, 3, H, W) in [-1, 1], and a caption for each."""

    pixels: Tensor
    captions: list[str]


def read_captioned_images(folder: Path, size: int, prompt: str = "") -> CaptionedImages:
    """Read all images of a folder, cropped and resized to `size`.

    The caption of an image is in the metadata file; without one, the caption of X.png is in X.txt. `prompt` is for
    images without a caption. Hidden files are passed over; a warning names the other files that are not used.
    Raises InputError for a folder without images, a file that cannot be read, an image without a caption, and a
    metadata file with a wrong row.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name that is too long
        raise InputError(f"{folder} is no folder, expected one with images; check its name.")
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    tables = [path for path in files if path.name in METADATA]
    if len(tables) == 2:
        raise InputError(f"{folder} contains {' and '.join(METADATA)}, expected one of them; remove the other.")
    found = _listed_images(tables[0]) if tables else _images_with_texts(files)
    if not found:
        where = f"{tables[0]} lists" if tables else f"{folder} contains"
        raise InputError(f"{where} no images, expected some of {', '.join(images.SUFFIXES)}.")
    used = {path for pair in found.items() for path in pair if isinstance(path, Path)}
    unused = [path.name for path in files if path not in {*used, *tables} and not (tables and path.is_dir())]
    if unused:
        warnings.warn(f"{folder} also contains {listed(unused)}, which is not used.", stacklevel=2)
    captions = [(read_text(each) if isinstance(each, Path) else each).strip() or prompt for each in found.values()]
    if not all(captions):
        missing = [*found][captions.index("")]
        where = f"to {tables[0].name}" if tables else f"to {missing.with_suffix('.txt').name}"
        raise InputError(f"{missing} has no caption; write one {where}, or give a prompt.")
    fitted = (ImageOps.fit(images.open_image(path), (size, size), Image.Resampling.LANCZOS) for path in found)
    return CaptionedImages(gathered(map(images.from_pil, fitted), len(found)), captions)


def _images_with_texts(files: list[Path]) -> dict[Path, Path | str]:
    """The images among the files, each with the file of its caption, or an empty text."""
    texts = {path.stem: path for kind in (".caption", ".txt") for path in files if path.suffix.lower() == kind}
    return {path: texts.get(path.stem, "") for path in files if path.suffix.lower() in images.SUFFIXES}


def _listed_images(table: Path) -> dict[Path, Path | str]:
    """The images that a metadata file lists, each with its caption. Raises InputError, which names the row."""
    found: dict[Path, Path | str] = {}
    for where, row in _rows(table):
        file, text = row.get("file_name"), row.get("text") or ""
        for column, value in (("file_name", file), ("text", text)):
            if not isinstance(value, str):
                raise InputError(f"{where}: {column} is {shown(value)}, expected a text.")
        name = PurePosixPath(str(file))
        if name.suffix.lower() not in images.SUFFIXES:
            raise InputError(f"{where}: file_name is {shown(file)}, expected one of {', '.join(images.SUFFIXES)}.")
        path = table.parent / name
        if name.is_absolute() or ".." in name.parts or not os.path.isfile(path):
            raise InputError(f"{where}: file_name is {shown(str(name))}, expected a file in {table.parent}.")
        if path in found:
            raise InputError(f"{where}: {shown(str(name))} is listed twice; remove one of the rows.")
        found[path] = str(text)
    return found


def _rows(table: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """The rows of a metadata file, each with its place for messages."""
    text = read_text(table)
    if table.suffix == ".csv":
        yield from _csv_rows(table, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{table}, line {number}"
        if not line.strip():
            continue
        try:
            row: object = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f'{where} is {shown(line)}, expected an object such as {{"file_name": ..., "text": ...}}.')
        yield where, row


def _csv_rows(table: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(text, newline=None))
    try:
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            if None in row:
                raise InputError(f"{where} has more values than columns; put texts with commas in quotation marks.")
            yield where, dict(row)
    except csv.Error as error:
        raise InputError(f"{table}, line {reader.line_num} cannot be read ({error}), expected CSV.") from error
