"""What learners handed in: a file or a folder for each, in one folder."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minisd._internal.messages import printable
from minisd.errors import InputError

LARGEST = 2**20  # bytes of a file


class NotReadable(Exception):
    """A file that is there but cannot be graded; the message is a sentence for the learner."""


@dataclass(frozen=True)
class Submission:
    """One learner's work. learner: a name that no other submission has. path: a folder of NAME.py, or one file."""

    learner: str
    path: Path

    def code_of(self, name: str) -> tuple[str, bytes] | None:
        """The file of an exercise, its name and what it says; None if it was not handed in. Raises NotReadable."""
        if self.path.is_dir():
            files = [each for each in sorted(self.path.rglob(f"{name}.py")) if not _is_hidden(each, self.path)]
            if len(files) > 1:
                places = " and ".join(each.relative_to(self.path).as_posix() for each in files[:2])
                raise NotReadable(f"there are several files {name}.py ({places}); hand in one.")
            return (files[0].name, _bytes(files[0])) if files else None
        if self.path.suffix.lower() != ".py":
            raise NotReadable(f"{self.path.name} is neither a .py file nor a folder of them; unpack or convert it.")
        code = _bytes(self.path)
        return (self.path.name, code) if _defines(code, name) else None


def submissions_in(folder: Path) -> list[Submission]:
    """All submissions, by name. Raises InputError where there are none."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; expected a folder with one file or one folder for each learner.")
    try:
        paths = [each for each in sorted(folder.iterdir()) if not each.name.startswith((".", "__"))]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); change its permissions.") from error
    if not paths:
        raise InputError(f"{folder} is empty; expected one file or one folder for each learner.")
    return [Submission(name, path) for name, path in zip(_names(paths), paths, strict=True)]


def _names(paths: list[Path]) -> list[str]:
    """A name for each path that is a file name, too, different from all others also without regard to case."""
    stems = [each.name if each.is_dir() else each.stem for each in paths]
    counts = Counter(stem.casefold() for stem in stems)
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        name = re.sub(r"[^\w.@ +-]", "_", printable(stem if counts[stem.casefold()] == 1 else path.name, 100))
        taken = {each.casefold() for each in names}
        number = 2
        unique = name
        while unique.casefold() in taken:
            unique, number = f"{name} ({number})", number + 1
        names.append(unique)
    return names


def _is_hidden(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part.startswith((".", "__")) for part in parts) or not path.is_file()


def _bytes(path: Path) -> bytes:
    """The content of a regular file; a link could lead out of the submission. Raises NotReadable."""
    try:
        if path.is_symlink() or not path.is_file():
            raise NotReadable(f"{path.name} is no regular file; hand in the file itself.")
        if path.stat().st_size > LARGEST:
            raise NotReadable(f"{path.name} has more than {LARGEST:,} bytes; hand in the source alone.")
        return path.read_bytes()
    except OSError as error:
        raise NotReadable(f"{path.name} cannot be read ({error.strerror}).") from error


def _defines(code: bytes, name: str) -> bool:
    """Whether a file seems to give a value to this name; also if it does not compile."""
    return (
        re.search(rb"^[ \t]*(?:(?:async )?def|class)[ \t]+%b\b|^%b[ \t]*[:=]" % (2 * (name.encode(),)), code, re.M)
        is not None
    )
