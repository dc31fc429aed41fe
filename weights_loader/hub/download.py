"""Models on the Hugging Face hub: only the files that are needed, all of one commit, each downloaded once."""

import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from minisd.errors import (
    HubError,
    HubNotFound,
    HubOffline,
    HubUnreachable,
    InputError,
    IntegrityError,
    MinisdError,
    OutputError,
)
from weights_loader.hub.cache import COMMIT, Listing, Snapshot, read_reference, write_reference
from weights_loader.hub.errors import attempt
from weights_loader.hub.repo_files import MODEL_INDEX, needed_files, read_json, shards, variants


def download(repo: str, *, revision: str | None = None, variant: str | None = None, progress: bool = True) -> Path:
    """The folder (diffusers layout) of a model on the hub; what the cache has in order is not fetched again.

    `revision` is a branch, tag or commit; `variant` takes for instance the fp16 weights where there are such.
    If the hub cannot deliver but the cache can, the cached model is returned, with a warning.

    Raises HubNotFound, HubGated, HubRateLimited, HubUnreachable; IntegrityError: what came is not what the
    hub announced, and was thrown away; InputError: no such variant; OutputError: disk full or not writable;
    MismatchError: no Stable Diffusion; UnsafeFileError: an index names files elsewhere.
    """
    try:
        with _bars(progress):
            return _download(repo, revision or constants.DEFAULT_REVISION, variant)
    except HubError as error:
        with suppress(MinisdError):
            folder = from_cache(repo, revision=revision, variant=variant)
            warnings.warn(f"{error} The copy in the cache is used: commit {folder.name}.", stacklevel=2)
            return folder
        raise


def from_cache(repo: str, *, revision: str | None = None, variant: str | None = None) -> Path:
    """The same folder out of the cache alone; opens no connection.

    Raises HubOffline, which lists the files that are missing; IntegrityError: a file is damaged.
    """
    revision = revision or constants.DEFAULT_REVISION
    commit = read_reference(repo, revision)
    if commit is None or not Snapshot(repo, commit).has(MODEL_INDEX):
        raise HubOffline(f"{repo} ({revision}) is not in {constants.HF_HUB_CACHE}; download it once, while online.")
    copy = Snapshot(repo, commit)
    names = copy.listing or {p.relative_to(copy.folder).as_posix() for p in copy.folder.rglob("*")}
    files, missing = needed_files(names, read_json(copy.folder / MODEL_INDEX), variant)
    files += _shards(copy, files)
    missing += [name for name in files if not copy.has(name)]
    if variant is not None and variant not in variants(names):
        missing.append(f"weights of variant {variant!r}")
    if missing:
        raise HubOffline(f"The cache lacks of {repo}: {', '.join(missing)}; download them once, while online.")
    for name in files:
        if not copy.sound(name):
            raise IntegrityError(f"{copy.folder / name} is damaged; go online, and it is downloaded again.")
    return copy.folder


def _download(repo: str, revision: str, variant: str | None) -> Path:
    commit, listing = attempt(partial(_ask, repo, revision), repo, f"revision {revision!r}")
    copy = Snapshot(repo, commit, listing)
    if MODEL_INDEX not in listing:
        single = next((name for name in listing if name.endswith((".safetensors", ".ckpt"))), "FILE")
        raise HubNotFound(
            f"{repo} has no {MODEL_INDEX}, so it is no model in diffusers layout; a single weight file is "
            f"fetched with `hf download {repo} {single}`, then give its path."
        )
    _fetch(copy, [MODEL_INDEX])
    files, missing = needed_files(listing, read_json(copy.folder / MODEL_INDEX), variant)
    if not missing and variant is not None and variant not in (there := variants(listing)):
        raise InputError(f"{repo} has no variant {variant!r}; it has {', '.join(map(repr, there)) or 'none'}.")
    if not missing:
        _fetch(copy, [name for name in files if name.endswith(".json")])  # small, and an index names shards
        files += _shards(copy, files)
        missing = [name for name in files if name not in listing]
    if missing:
        raise HubNotFound(f"{repo} ({revision}) lacks {', '.join(missing)}; choose another model or revision.")
    _fetch(copy, files)
    if revision != commit:
        write_reference(repo, revision, commit)  # only now: a reference always leads to a complete model
    return copy.folder


def _ask(repo: str, revision: str) -> tuple[str, Listing]:
    """The commit of a revision, and its files."""
    try:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
        files = {f.rfilename: (f.size, f.lfs.sha256 if f.lfs else f.blob_id) for f in info.siblings or ()}
        if not COMMIT.fullmatch(info.sha or ""):
            raise ValueError(f"a hub names the commit, got {info.sha!r}")
        return str(info.sha), files
    except (HfHubHTTPError, HFValidationError):  # some of these are ValueErrors too
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConnectionError("not the answer of a hub, but for instance a login page") from error


def _shards(copy: Snapshot, files: Collection[str]) -> list[str]:
    """The weight files that the indices among `files` name, as far as these are there."""
    return [part for name in files if ".index." in name and copy.has(name) for part in shards(copy.folder, name)]


def _fetch(copy: Snapshot, names: list[str]) -> None:
    """Download what is missing or damaged, after a look whether the disk has room for it."""
    for name in names:
        if copy.has(name) and not copy.sound(name):
            warnings.warn(f"{name} of {copy.repo} is damaged in the cache; downloading it again.", stacklevel=5)
            copy.discard(name)
    wanted = [name for name in names if not copy.has(name)]
    if not wanted:
        return
    copy.sweep()
    copy.remember()
    total, done = sum(map(copy.size, wanted)), 0
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(place for place in (cache, *cache.parents) if place.exists())).free
    if total > free:
        raise OutputError(
            f"{copy.repo} needs {_mb(total)} in {cache}, where {_mb(free)} are free; free some space, or set "
            "HF_HOME to a folder on a larger disk."
        )
    for name in wanted:
        try:
            attempt(partial(hf_hub_download, copy.repo, name, revision=copy.commit), copy.repo, name)
        except HubUnreachable as error:
            raise HubUnreachable(f"{error} {_mb(done)} of {_mb(total)} have come and are kept.") from error
        except IntegrityError:
            copy.discard(name)
            raise
        if not copy.sound(name):
            copy.discard(name)
            raise IntegrityError(
                f"{name} of {copy.repo} came with other bytes than the hub announced and was thrown away; "
                "try again, and if it stays so, mistrust the network or mirror."
            )
        done += copy.size(name)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """The hub client's progress bars, or none."""
    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
