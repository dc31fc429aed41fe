"""The hub's cache on disk: the files of one commit, each compared once with its size and hash on the hub.

The layout is that of the hub client, so that no model is stored twice:
`models--owner--name/{refs/main, snapshots/<commit>/unet/config.json -> blobs/<hash>}`. minisd adds
`models--owner--name/minisd/<commit>.json`: the size and hash of every file on the hub, and which files were verified.
"""

import hashlib
import re
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from minisd._internal.atomic_files import write_json, write_text
from minisd._internal.json_files import read_json
from minisd._internal.model_files import safe_join
from minisd.errors import MinisdError
from weights_loader.model_folder import ModelFolder

COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's hash of a small file | SHA-256 of a large one
ABANDONED_AFTER = 3600  # seconds without a write to an unfinished download
Listing = dict[str, tuple[int | None, str | None]]  # file name: (size, hash)


def repo_folder(repo: str) -> Path:
    """The folder of a repository in the cache."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def read_reference(repo: str, revision: str) -> str | None:
    """The commit of a branch, tag or commit when it was downloaded; None if it was not."""
    if COMMIT.fullmatch(revision):
        return revision
    commit = ""
    with suppress(OSError, UnicodeDecodeError):
        commit = safe_join(repo_folder(repo) / "refs", revision).read_text(encoding="ascii").strip()
    return commit if COMMIT.fullmatch(commit) else None


def write_reference(repo: str, revision: str, commit: str) -> None:
    """Store the commit of a branch or tag, if the cache can be written."""
    path = safe_join(repo_folder(repo) / "refs", revision)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(commit, path, overwrite=True)


class Snapshot(ModelFolder):
    """One commit of a repository in the cache. listing: the files on the hub; empty if it is unknown."""

    def __init__(self, repo: str, commit: str, listing: Listing | None = None) -> None:
        super().__init__(repo_folder(repo) / "snapshots" / commit)
        self.repo, self.commit = repo, commit
        self._record = repo_folder(repo) / "minisd" / f"{commit}.json"
        known, self._verified = _read_record(self._record)
        self.listing = known if listing is None else listing
        if self.listing != known:
            self._verified = {}  # without these sizes and hashes, or with others

    def has(self, name: str) -> bool:
        """Whether a file is in the cache."""
        return self.file(name).is_file()

    def size(self, name: str) -> int:
        """The bytes of a file on the hub; 0 if unknown."""
        return self.listing.get(name, (None, None))[0] or 0

    def is_intact(self, name: str) -> bool:
        """Whether a file has its size and hash on the hub; hashed the first time and after every change."""
        path = self.path / name
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if self._verified.get(name) == stamp:
            return True
        size, digest = self.listing.get(name, (None, None))
        if digest is None and path.is_symlink():
            digest = path.readlink().name  # the client names its blobs by their hashes
        if size is not None and size != stat.st_size:
            return False
        if digest is not None and HASH.fullmatch(digest) and _hash(path, len(digest)) != digest:
            return False
        self._verified[name] = stamp
        self.save_record()
        return True

    def discard(self, name: str) -> None:
        """Remove a file, the blob that it links to, and the unfinished download that some clients would resume."""
        _, digest = self.listing.get(name, (None, None))
        if digest is not None and HASH.fullmatch(digest):
            (repo_folder(self.repo) / "blobs" / f"{digest}.incomplete").unlink(missing_ok=True)
        path: Path | None = self.path / name
        while path is not None:
            target = path.parent / path.readlink() if path.is_symlink() else None
            path.unlink(missing_ok=True)
            path = target

    def save_record(self) -> None:
        """Store what is known about the files; without it (the cache is read-only) they are hashed again next time."""
        with suppress(OSError):
            self._record.parent.mkdir(parents=True, exist_ok=True)
            write_json({"files": self.listing, "checked": self._verified}, self._record, overwrite=True)

    def remove_abandoned_downloads(self) -> None:
        """Remove the unfinished files of killed processes: those that no process holds the client's lock of."""
        folder = repo_folder(self.repo)
        for path in (folder / "blobs").glob("*.????????.incomplete"):
            lock = folder.parent / ".locks" / folder.name / f"{path.name.rsplit('.', 2)[0]}.lock"
            with suppress(OSError):  # it is locked, or the cache is read-only
                if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                    path.unlink()
                with WeakFileLock(lock, timeout=0.01):
                    path.unlink(missing_ok=True)


def _read_record(path: Path) -> tuple[Listing, dict[str, list[int]]]:
    """The files of a commit, and the stamps of those that were verified; nothing where the record is not as written."""
    try:
        record = read_json(path)
        listing = {str(name): (size, digest) for name, (size, digest) in record["files"].items()}
        verified = {str(name): [*stamp] for name, stamp in record["checked"].items()}
    except (MinisdError, KeyError, TypeError, ValueError, AttributeError):
        return {}, {}
    kinds = {(type(size), type(digest)) for size, digest in listing.values()}
    plain = kinds <= {(a, b) for a in (int, type(None)) for b in (str, type(None))}
    return (listing, verified) if plain else ({}, {})


def _hash(path: Path, length: int) -> str:
    """SHA-256 of a file, or, for a length of 40 characters, the hash that git gives it."""
    with path.open("rb") as file:
        if length == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
