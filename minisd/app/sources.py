"""The files that the page links to: the source of each component and, in a clone of the repository, the lessons."""

from functools import cache
from pathlib import Path

import minisd

ROOT = Path(minisd.__file__).resolve().parents[1]
PACKAGES = ("minisd", "weights_loader")


@cache
def linked_files() -> dict[str, Path]:
    """All files that the server gives out, by the address below the page: no other name leads to a file."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    lessons = (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    return {f"source/{path.relative_to(ROOT).as_posix()}": path for path in (*sorted(files), *sorted(lessons))}


def source_address(path: str) -> str | None:
    """The address of a file of the packages, such as minisd/tokenizer.py; None where it is not installed."""
    address = f"source/{path}"
    return address if address in linked_files() else None


def lesson_address(number: str) -> str | None:
    """The address of a lesson, such as "05"; None without a clone of the repository."""
    found = [address for address in linked_files() if address.startswith(f"source/notebooks/{number}_")]
    return found[0] if number and found else None
