"""The folder of a learner: a file for each exercise, and progress.json beside them."""

import json
from pathlib import Path
from typing import Any

from minisd._internal.atomic_files import write_json
from minisd._internal.atomic_folders import make_folder
from minisd.errors import InputError, OutputError
from minisd.exercises.sheets import Sheet

PROGRESS = "progress.json"


def start(sheet: Sheet, folder: Path) -> Path:
    """Write the file to begin with. Raises InputError if it exists, OutputError."""
    path = path_of(sheet.name, folder)
    if path.exists():
        raise InputError(f"{path} exists, and is yours: edit it, or remove it to begin anew.")
    make_folder(folder)
    try:
        path.write_text(sheet.starter, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); name another --folder.") from error
    return path


def path_of(name: str, folder: Path) -> Path:
    """The learner's file of the exercise with this name."""
    return folder / f"{name}.py"


def progress(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known about each exercise that was begun: its state, and how many hints were read."""
    try:
        found = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def record(folder: Path, name: str, **facts: Any) -> None:
    """Add facts about an exercise to progress.json. Raises OutputError."""
    known = progress(folder)
    known[name] = {**known.get(name, {}), **facts}
    make_folder(folder)
    write_json(known, folder / PROGRESS, overwrite=True)


def hints_read(name: str, folder: Path) -> int:
    """How many hints of an exercise were read."""
    read = progress(folder).get(name, {}).get("hints", 0)
    return read if isinstance(read, int) else 0
