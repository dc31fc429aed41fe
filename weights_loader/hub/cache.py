"""The hub's cache on disk: files of one commit, each checked once against what the hub says about it.

The layout is the hub client's own, so that no model is stored twice:
`models--owner--name/{refs/main, snapshots/<commit>/unet/config.json -> blobs/<hash>}`. This project adds
`models--owner--name/minisd/<commit>.json`: size and hash of every file on the hub, and which were checked.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from minisd.errors import MinisdError
from weights_loader.hub.repo_files import read_json
from weights_loader.paths import safe_join

COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # the one git gives to a small file | SHA-256 of a large one
Listing = dict[str, tuple[int | None, str | None]]  # file name: (size, hash)


def repo_folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def read_reference(repo: str, revision: str) -> str | None:
    """The commit that a branch, tag or commit meant when it was downloaded; None if it was not."""
    if COMMIT.fullmatch(revision):
        return revision
    path = safe_join(repo_folder(repo) / "refs", revision)
    commit = path.read_text().strip() if path.is_file() else ""
    return commit if COMMIT.fullmatch(commit) else None


def write_reference(repo: str, revision: str, commit: str) -> None:
    with suppress(OSError):
        _write(safe_join(repo_folder(repo) / "refs", revision), commit)


class Snapshot:
    """One commit of a repository in the cache; `listing` is what the hub has, empty if nobody knows."""

    def __init__(self, repo: str, commit: str, listing: Listing | None = None) -> None:
        self.repo, self.commit = repo, commit
        self.folder = repo_folder(repo) / "snapshots" / commit
        self._record = repo_folder(repo) / "minisd" / f"{commit}.json"
        known: dict = {}
        with suppress(OSError, MinisdError):
            known = read_json(self._record)
        self.listing: Listing = known.get("files", {}) if listing is None else listing
        self._checked: dict[str, list[int]] = known.get("checked", {})

    def has(self, name: str) -> bool:
        return safe_join(self.folder, name).is_file()

    def size(self, name: str) -> int:
        """Bytes of a file on the hub; 0 if unknown."""
        return self.listing.get(name, (None, None))[0] or 0

    def sound(self, name: str) -> bool:
        """Whether a file has the hub's size and hash; hashed the first time, and when it has changed."""
        path = self.folder / name
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns]
        if self._checked.get(name) == seen:
            return True
        size, digest = self.listing.get(name, (None, None))
        if digest is None and path.is_symlink():
            digest = path.readlink().name  # the client names its blobs by hash
        if size is not None and size != stat.st_size:
            return False
        if digest is not None and HASH.fullmatch(digest) and _hash(path, len(digest)) != digest:
            return False
        self._checked[name] = seen
        self.remember()
        return True

    def discard(self, name: str) -> None:
        """Remove a file, all that it links to, and a part of it from which some clients would resume."""
        _, digest = self.listing.get(name, (None, None))
        if digest is not None and HASH.fullmatch(digest):
            (repo_folder(self.repo) / "blobs" / f"{digest}.incomplete").unlink(missing_ok=True)
        path: Path | None = self.folder / name
        while path is not None:
            target = path.parent / path.readlink() if path.is_symlink() else None
            path.unlink(missing_ok=True)
            path = target

    def remember(self) -> None:
        """Store the record; where the cache cannot be written, files are hashed again next time."""
        with suppress(OSError):
            _write(self._record, json.dumps({"files": self.listing, "checked": self._checked}))

    def sweep(self) -> None:
        """Remove what killed downloads have left; a running one has written within the hour."""
        for path in (repo_folder(self.repo) / "blobs").glob("*.????????.incomplete"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()


def _hash(path: Path, length: int) -> str:
    """SHA-256 of a file, or, if 40 characters are asked for, the hash that git gives it."""
    with path.open("rb") as file:
        if length == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _write(path: Path, text: str) -> None:
    """Write a small file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
