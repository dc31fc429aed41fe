"""One gate for every file name that comes out of a downloaded or unpacked file."""

import re
import stat
from pathlib import Path

from minisd.errors import UnsafeFileError

_ODD_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\\:]")


def safe_join(folder: str | Path, name: str) -> Path:
    """The path of `name` inside `folder`, for names that a config or index file gives.

    `name` is relative and uses forward slashes ("unet/config.json"). It need not exist; where it does, it
    must be a regular file or a folder. A symbolic link may lead to another place inside `folder`, or, if
    `folder` lies in a snapshot of the hub's cache, into that cache's `blobs`, where the client keeps files.

    Raises UnsafeFileError: the name is empty, absolute, has a drive letter, a backslash, a control character
    or a `..`, leads out of the folder through a link, or is a device, socket or named pipe.
    """
    folder = Path(folder)
    shown = repr(name)[:80]
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or _ODD_CHARACTERS.search(name) or any(part in ("", ".", "..") for part in parts):
        raise UnsafeFileError(
            f"File name {shown} in {folder} is not a plain relative name such as 'unet/config.json'; "
            "do not use this model unless you trust who made it and can correct the name."
        )
    path = folder.joinpath(*parts)
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in (folder.resolve(), *_blob_folders(folder))):
        raise UnsafeFileError(
            f"{path} leads out of its folder through a link, to {target}; put a copy of the file there."
        )
    if target.exists() and not (stat.S_ISREG(mode := target.stat().st_mode) or stat.S_ISDIR(mode)):
        raise UnsafeFileError(f"{path} is neither a file nor a folder but a device, socket or pipe; remove it.")
    return path


def _blob_folders(folder: Path) -> list[Path]:
    """Where links of a snapshot in the hub's cache (…/models--owner--name/snapshots/commit) may lead."""
    for place in folder.absolute().parents:
        if place.name == "snapshots" and place.parent.name.startswith("models--"):
            repository = place.parent.resolve()
            return [
                repository / "blobs",
                repository.parent / "blobs",
            ]  # its own, and the one that all models share
    return []
