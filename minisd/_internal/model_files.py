"""Read the files that a model brings: inside its folder, regular, and of limited size."""

import gzip
import os
import re
import stat
import zlib
from pathlib import Path

from minisd._internal.messages import shown
from minisd.errors import FileFormatError, UnsafeFileError

LARGEST = 32_000_000  # bytes of a JSON file or a vocabulary; the largest official one has 4 million
_FORBIDDEN_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\\:]")


def is_file(path: Path) -> bool:
    """path.is_file(), but False for a name that is too long and where the folder cannot be searched."""
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """path.is_dir(), with the same difference."""
    return os.path.isdir(path)


def list_folder(folder: Path) -> list[str]:
    """The names in a folder; none if it does not exist. Raises FileFormatError if it cannot be read."""
    try:
        return os.listdir(folder) if is_folder(folder) else []
    except OSError as error:
        raise FileFormatError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error


def read_model_file(path: Path) -> bytes:
    """The content of a small file of a model, without the compression of gzip. Raises FileFormatError.

    A pipe would wait and a device never ends, so neither is opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileFormatError(f"{path} is a folder, pipe or device, expected a regular file; remove it.")
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
            if raw.startswith(b"\x1f\x8b"):
                file.seek(0)
                with gzip.GzipFile(fileobj=file) as unpacked:
                    raw = unpacked.read(LARGEST + 1)
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing; download it again.") from None
    except PermissionError as error:
        raise FileFormatError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileFormatError(f"{path} cannot be read ({reason}); download it again.") from error
    if len(raw) > LARGEST:
        raise FileFormatError(f"{path} has more than {LARGEST:,} bytes, too many for such a file; download it again.")
    return raw


def safe_join(folder: str | Path, name: str) -> Path:
    """The path of `name` inside `folder`, for names that a config or an index gives.

    `name` is relative and uses forward slashes ("unet/config.json"). It need not exist; if it does, it must be a
    regular file or a folder. A symbolic link may lead to another place inside `folder` or, if `folder` is in a snapshot
    of the hub's cache, into the `blobs` of that cache, where the client keeps files.

    Raises UnsafeFileError: the name is empty, absolute, has a drive letter, a backslash, a control character or a `..`,
    leads out of the folder through a link, or is a device, socket or named pipe.
    """
    folder = Path(folder)
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or _FORBIDDEN_CHARACTERS.search(name) or any(part in ("", ".", "..") for part in parts):
        raise UnsafeFileError(
            f"The file name {shown(name)} in {folder} is not a plain relative name such as 'unet/config.json'; "
            "use this model only if you trust its author and can correct the name."
        )
    path = folder.joinpath(*parts)
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in (folder.resolve(), *_blob_folders(folder))):
        raise UnsafeFileError(f"{path} is a link that leads out of its folder, to {target}; copy the file there.")
    if target.exists() and not (stat.S_ISREG(mode := target.stat().st_mode) or stat.S_ISDIR(mode)):
        raise UnsafeFileError(f"{path} is a device, socket or pipe, expected a file or a folder; remove it.")
    return path


def _blob_folders(folder: Path) -> list[Path]:
    """Where links in a snapshot of the hub's cache (.../models--owner--name/snapshots/commit) may lead."""
    for parent in folder.absolute().parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            repository = parent.parent.resolve()
            return [repository / "blobs", repository.parent / "blobs"]  # its own, and the one of all models
    return []
