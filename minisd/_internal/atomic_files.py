"""Write files so that a reader finds the old one or the new one, whole, whatever happens in between.

A new file is written beside its target under another name, forced to the disk, checked, then renamed.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minisd.errors import InputError, OutputError


def write_json(obj: Any, path: str | Path, overwrite: bool = False) -> None:
    """Write an object as indented UTF-8 JSON.

    Raises: InputError (no JSON value: NaN counts as none), OutputError (the target cannot be written).
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: this object cannot be written as JSON ({error}).") from None
    write_text(text, path, overwrite)


def write_text(text: str, path: str | Path, overwrite: bool = False) -> None:
    """Write a text as UTF-8. Raises: InputError (lone surrogates), OutputError (the target cannot be written)."""
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: this text cannot be written as UTF-8 ({error}).") from None
    write_atomically(path, lambda file: file.write(raw), overwrite)


def write_atomically(
    path: str | Path,
    write: Callable[[BinaryIO], object],
    overwrite: bool = False,
    check: Callable[[BinaryIO], object] | None = None,
) -> None:
    """Create or replace a file by what `write` writes into an open binary file.

    `check` may read what was written back and raise; then, as after any failure, the target is as it was and
    nothing else is left in its folder. The mode is that of the file replaced, or of any new file (umask).

    Raises: OutputError; what `write` or `check` raises that is no OSError passes through.
    """
    path = Path(path)
    check_target(path, overwrite)
    _sweep(path.parent)
    temporary = path.parent / f"{_prefix()}{os.getpid()}-{secrets.token_hex(6)}.tmp"
    try:
        with _removed_on_failure(temporary):
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                with open(temporary, "rb") as file:
                    check(file)
            if path.exists():
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            check_target(path, overwrite)  # somebody may have been faster
            os.replace(temporary, path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} could not be written ({error.strerror or error}); what was there before is untouched."
        ) from error
    _sync_folder(path.parent)


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Raise OutputError, before any work, where `write_atomically` could not or should not write."""
    path = Path(path)
    try:
        parent = path.parent.stat()
        try:
            target = path.lstat()
        except FileNotFoundError:
            target = None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(path)[:200]!r} cannot be written ({reason}); check its folder and its name.") from None
    if not stat.S_ISDIR(parent.st_mode):
        raise OutputError(f"{path} cannot be written: {path.parent} is no folder.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: its folder is read-only; choose another.")
    if target is None:
        return
    if not stat.S_ISREG(target.st_mode):
        what = "folder" if stat.S_ISDIR(target.st_mode) else "link, pipe or device"
        raise OutputError(f"{path} is a {what}, expected a regular file or nothing; choose another name.")
    if not overwrite:
        raise OutputError(f"{path} exists already; choose another name, or allow it to be overwritten.")


def _prefix() -> str:
    """How the temporary files of this machine begin; the process id follows."""
    return f".minisd-{re.sub('[^A-Za-z0-9]', '', socket.gethostname())[:40]}-"


def _sweep(folder: Path) -> None:
    """Remove what processes of this machine that were killed while writing have left in the folder."""
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return
    for leftover in folder.glob(f"{_prefix()}*.tmp"):
        pid = leftover.name.removeprefix(_prefix()).partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is someone else's
        return True
    return True


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C too
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the file system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
