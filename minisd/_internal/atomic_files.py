"""Write files so that a reader finds the old file or the new one, complete, even after a crash.

The new file is written under a temporary name beside its target, flushed to the disk, checked and then renamed.
"""

import contextlib
import io
import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from minisd._internal.file_lock import hidden_prefix
from minisd.errors import InputError, OutputError


def write_json(obj: Any, path: str | Path, overwrite: bool = False) -> None:
    """Write an object as indented UTF-8 JSON.

    Raises: InputError (not a JSON value; NaN is not one), OutputError (the target cannot be written).
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


class _RememberingFile(io.FileIO):
    """Keeps the OSError of a failed write, which torch.save replaces by an error of its own."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def write_atomically(
    path: str | Path,
    write: Callable[[BinaryIO], object],
    overwrite: bool = False,
    check: Callable[[BinaryIO], object] | None = None,
) -> None:
    """Create or replace a file; `write` gets a binary file that is open for writing.

    `check` may read the written file and raise. After any failure the target is unchanged and the temporary file is
    removed; if the process was killed, the next write to the same target removes it. Of two processes that write to
    one target, the one that began later wins, and the other may raise OutputError. The mode is that of the file
    replaced, or of a new file (umask).

    Raises: OutputError; exceptions of `write` or `check` that are not OSErrors pass through.
    """
    check_target(path, overwrite)
    path = Path(path)
    prefix = hidden_prefix(path)
    temporary = path.with_name(f"{prefix}{secrets.token_hex(6)}.tmp")
    raw: _RememberingFile | None = None
    try:
        for leftover in path.parent.glob(f"{prefix}*.tmp"):
            with contextlib.suppress(PermissionError):  # Windows keeps a file that another process is writing
                leftover.unlink(missing_ok=True)
        raw = _RememberingFile(temporary, "x")
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            with open(temporary, "rb") as file:
                check(file)
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        check_target(path, overwrite)  # another process may have written it in the meantime
        os.replace(temporary, path)
    except OutputError:
        raise
    except Exception as error:
        cause = error if raw is None or raw.failure is None else raw.failure
        if not isinstance(cause, OSError):
            raise
        raise OutputError(f"{path} could not be written ({cause.strerror or cause}); it is unchanged.") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Raise OutputError, before any work, where `write_atomically` could not or should not write."""
    try:
        path = Path(path)
        parent = path.parent.stat()
        try:
            target = path.lstat()
        except FileNotFoundError:
            target = None
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(path)[:200]!r} cannot be written ({reason}); check its folder and its name.") from None
    if not stat.S_ISDIR(parent.st_mode):
        raise OutputError(f"{path} cannot be written: {path.parent} is not a folder.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: its folder is read-only; choose another.")
    if target is None:
        return
    if not stat.S_ISREG(target.st_mode):
        what = "folder" if stat.S_ISDIR(target.st_mode) else "link, pipe or device"
        raise OutputError(f"{path} is a {what}, expected a regular file or nothing; choose another name.")
    if not overwrite:
        raise OutputError(f"{path} exists already; choose another name, or pass overwrite=True.")


def sync_folder(folder: Path) -> None:
    """Make the renaming survive a power cut, if the file system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
