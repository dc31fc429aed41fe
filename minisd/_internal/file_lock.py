"""One writer at a time: a lock that ends with the process that holds it, however that ends."""

import contextlib
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minisd.errors import OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def hidden_prefix(path: Path) -> str:
    """The beginning of the names of temporary files for a target; short, however long the target's own name is."""
    return f".minisd-{zlib.crc32(os.fsencode(path.name)):08x}-"


@contextmanager
def only_writer(target: Path, folder: Path | None = None) -> Iterator[None]:
    """Be the only process, and thread, that writes `target`; the lock is a hidden file in `folder`, or beside it.

    The lock file is removed at the end; one that a killed process left behind locks nothing. On file systems without
    locks nothing is locked. Raises OutputError at once if another writer is at work, or if the file cannot be made.
    """
    path = (target.parent if folder is None else folder) / f"{hidden_prefix(target)}lock"
    try:
        descriptor = _locked(path)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror or error}); check its folder.") from error
    if descriptor is None:
        raise OutputError(f"another process is writing {target}; wait until it ends, or choose another name.")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps the file, which locks nothing
            path.unlink()
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor of the locked file, or None if it is locked already."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its owner removed it between our opening and locking it
