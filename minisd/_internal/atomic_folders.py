"""Replace files that belong together, so that a reader finds the old set or the new one, never parts of both.

The new files are written into a hidden folder beside the target, completely. Then the old folder is renamed away, the
new one gets its name, and the old one is removed: killed at any moment, one of the two is there as a whole. Killed
between the two renames, the old one lies under a hidden name, and the next call puts it back.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from minisd._internal.atomic_files import sync_folder
from minisd._internal.file_lock import hidden_prefix, only_writer
from minisd.errors import MinisdError, OutputError


class FileSet(NamedTuple):
    """The files of one kind of folder.

    mark: the file without which nothing in the folder loads. names: matches the relative paths of all files that any
    writer of such folders may write, and that of a link to a folder of them ("unet/"); those that the new set lacks
    are removed. All other files are kept.
    """

    mark: str
    names: re.Pattern[str]


def replace_files(folder: str | Path, write: Callable[[Path], object], files: FileSet, overwrite: bool = False) -> None:
    """Create a folder, or replace the set of files in it; `write` gets an empty folder and fills it.

    After an error nothing has changed. A link to a folder stays a link. What a killed process left behind is removed.

    Files move one by one, while the mark is away, where a folder cannot or should not be renamed: a mount point, the
    current folder, a folder without the mark. Killed in the middle, it lacks its mark, and does not load. Windows
    renames no folder whose files are in use, such as the mapped weights of a model; that is an OutputError.

    Raises: OutputError (not possible here, not empty without `overwrite`, in use by another writer, the disk is full);
    exceptions of `write` that are not OSErrors pass through.
    """
    try:
        folder = Path(os.path.realpath(folder))
    except (TypeError, ValueError, OSError) as error:
        raise OutputError(f"{repr(folder)[:200]} is not a name of a folder ({error}); choose another.") from None
    check_folder(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = os.access(folder.parent, os.W_OK | os.X_OK) or not folder.exists()
        with only_writer(folder, folder.parent if beside else folder):
            _clear_leftovers(folder)
            check_folder(folder, overwrite)
            one_by_one = folder.exists() and not (beside and _may_be_renamed(folder, files.mark))
            new = (folder if one_by_one else folder.parent) / f"{hidden_prefix(folder)}{secrets.token_hex(6)}.new"
            new.mkdir()
            try:
                write(new)
                _check_way(_files(new), folder)
                (_move_files if one_by_one else _exchange)(new, folder, files)
            except OutputError as error:
                raise OutputError(str(error).replace(str(new), str(folder))) from error
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except MinisdError:
        raise
    except OSError as error:
        is_blocked = isinstance(error, FileExistsError)
        reason = "one of the folders above it is a file" if is_blocked else error.strerror or error
        raise OutputError(f"{str(folder)[:200]} cannot be written ({reason}); it is unchanged.") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they exist. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(folder)[:200]!r} cannot be made a folder ({reason}); choose another name.") from None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise OutputError if files cannot or should not be written into the folder."""
    try:
        mode = folder.stat().st_mode
        names = os.listdir(folder) if stat.S_ISDIR(mode) else []
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(folder)[:200]!r} cannot be a folder ({reason}); choose another name.") from None
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{folder} is a file, expected a folder or nothing; choose another name.")
    if not overwrite and any(not name.startswith(".minisd-") for name in names):
        raise OutputError(f"{folder} is not empty; choose another folder, or pass overwrite=True.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} is read-only; choose another folder.")


def _may_be_renamed(folder: Path, mark: str) -> bool:
    """Whether a folder can be exchanged as a whole: it has the mark, is no mount point, and this process is not in it.

    A folder without the mark may be anything, such as a home folder; nothing in it loads that could be mixed.
    """
    with contextlib.suppress(FileNotFoundError):  # the current folder was removed
        if Path.cwd().is_relative_to(folder):
            return False
    return (folder / mark).is_file() and not os.path.ismount(folder)


def _check_way(names: Iterable[str], folder: Path) -> None:
    """Raise OutputError if a folder is where a file belongs, or a file where a folder belongs."""
    for name in names:
        path = folder / name
        parents = [folder / parent for parent in Path(name).parents if (folder / parent).exists()]
        blocked = [each for each in parents if not each.is_dir()]
        if blocked or (path.is_dir() and not path.is_symlink()):
            raise OutputError(f"{(blocked or [path])[0]} is in the way, and a model has another kind there; remove it.")


def _exchange(new: Path, folder: Path, files: FileSet) -> None:
    """Rename the old folder away and the new one to its name; the files that are not of the set come along."""
    old = new.with_suffix(".old")
    if folder.exists():
        os.chmod(new, stat.S_IMODE(folder.stat().st_mode))
        for name, path in _files(folder).items():
            if not files.names.fullmatch(name):
                _carry_over(path, new / name)
    try:
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        inside = Path(shutil.move(new, folder / new.name))  # a bind mount, or a folder of a container's image
        try:
            _move_files(inside, folder, files)
        finally:
            shutil.rmtree(inside, ignore_errors=True)
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _carry_over(path: Path, target: Path) -> None:
    """Give a file a second name or, on file systems without hard links, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        shutil.copy2(path, target, follow_symlinks=False)


def _move_files(new: Path, folder: Path, files: FileSet) -> None:
    """Replace the files one by one, while the mark is away."""
    moved = _files(new)
    (folder / files.mark).unlink(missing_ok=True)
    try:
        for name, path in _files(folder).items():
            if files.names.fullmatch(name) and name not in moved:
                path.unlink()
        for name in sorted(moved, key=lambda name: name == files.mark):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(moved[name], folder / name)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{folder} is incomplete, a file of it cannot be replaced ({reason}); save again.") from error
    sync_folder(folder)


def _files(folder: Path) -> dict[str, Path]:
    """All files below a folder by their relative names, but hidden temporary ones; "name/" is a link to a folder."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".minisd-")]
        links = [f"{name}/" for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*names, *links):
            if not name.startswith(".minisd-"):
                found[(Path(place).relative_to(folder) / name).as_posix() + "/" * name.endswith("/")] = Path(
                    place, name
                )
    return found


def _clear_leftovers(folder: Path) -> None:
    """Put back what a killed process had renamed away, and remove what it had begun; only the one writer does this."""
    for place in (folder.parent, folder):
        for path in place.glob(f"{hidden_prefix(folder)}*.old"):
            if not folder.exists():
                os.rename(path, folder)
        for path in (*place.glob(f"{hidden_prefix(folder)}*.old"), *place.glob(f"{hidden_prefix(folder)}*.new")):
            shutil.rmtree(path, ignore_errors=True)
