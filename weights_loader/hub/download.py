"""Download models from the Hugging Face hub: only the needed files, all of one commit, each of them once."""

import shutil
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
from weights_loader.hub.needed_files import needed_files, variants
from weights_loader.model_folder import MODEL_INDEX


def download(
    repo: str, notices: list[str], revision: str | None = None, variant: str | None = None, progress: bool = True
) -> Path:
    """The folder (diffusers layout) of a model on the hub. Intact files in the cache are not downloaded again.

    revision: a branch, tag or commit. variant: weight files to prefer, such as "fp16". If the hub fails and the cache
    is complete, the cached model is returned. What users should know is added to `notices`.

    Raises HubNotFound, HubGated, HubRateLimited, HubUnreachable; IntegrityError (a file differs from the one on the
    hub, and was deleted); InputError (no such variant); OutputError (the disk is full or not writable); MismatchError
    (not a Stable Diffusion model); UnsafeFileError (an index names files outside the folder).
    """
    try:
        with _progress_bars(progress):
            return _download(repo, notices, revision or constants.DEFAULT_REVISION, variant)
    except HubError as error:
        with suppress(MinisdError):
            folder = from_cache(repo, revision, variant)
            notices.append(f"{error} The copy in the cache is used: commit {folder.name}.")
            return folder
        raise


def from_cache(repo: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The same folder from the cache alone, without a connection.

    Raises HubOffline, which lists the missing files; IntegrityError if a file is damaged.
    """
    revision = revision or constants.DEFAULT_REVISION
    commit = read_reference(repo, revision)
    copy = None if commit is None else Snapshot(repo, commit)
    if copy is None or not copy.has(MODEL_INDEX):
        raise HubOffline(f"{repo} ({revision}) is not in {constants.HF_HUB_CACHE}; download it once while online.")
    names = copy.listing or {path.relative_to(copy.path).as_posix() for path in copy.path.rglob("*")}
    files, missing = needed_files(names, copy.json("", MODEL_INDEX), variant)
    files += _shards(copy, files)
    missing += [name for name in files if not copy.has(name)]
    if variant is not None and variant not in variants(names):
        missing.append(f"weights of variant {variant!r}")
    if missing:
        raise HubOffline(f"the cache has not all files of {repo}, it lacks {', '.join(missing)}; go online once.")
    for name in files:
        if not copy.is_intact(name):
            raise IntegrityError(f"{copy.path / name} is damaged; go online once to download it again.")
    return copy.path


def download_files(repo: str, names: Collection[str], offline: bool | None = None, progress: bool = True) -> Path:
    """The folder with a few small files of a repository, from the cache or downloaded. Raises HubError."""
    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    with _progress_bars(progress):
        paths = [attempt(partial(hf_hub_download, repo, name, local_files_only=offline), repo, name) for name in names]
    return Path(paths[0]).parent


def _download(repo: str, notices: list[str], revision: str, variant: str | None) -> Path:
    commit, listing = attempt(partial(_list_files, repo, revision), repo, f"revision {revision!r}")
    copy = Snapshot(repo, commit, listing)
    if MODEL_INDEX not in listing:
        single = next((name for name in listing if name.endswith((".safetensors", ".ckpt"))), "FILE")
        raise HubNotFound(
            f"{repo} has no {MODEL_INDEX}, so it is not a model in diffusers layout; download a single weight file "
            f"with `hf download {repo} {single}` and give its path."
        )
    _fetch(copy, [MODEL_INDEX], notices)
    files, missing = needed_files(listing, copy.json("", MODEL_INDEX), variant)
    if not missing and variant is not None and variant not in (available := variants(listing)):
        raise InputError(f"{repo} has no variant {variant!r}, expected {', '.join(map(repr, available)) or 'none'}.")
    if not missing:
        _fetch(copy, [name for name in files if name.endswith(".json")], notices)  # an index names the shards
        files += _shards(copy, files)
        missing = [name for name in files if name not in listing]
    if missing:
        raise HubNotFound(f"{repo} ({revision}) lacks {', '.join(missing)}; choose another model or revision.")
    _fetch(copy, files, notices)
    if revision != commit:
        write_reference(repo, revision, commit)  # last: a reference always leads to a complete model
    copy.remove_abandoned_downloads()
    return copy.path


def _list_files(repo: str, revision: str) -> tuple[str, Listing]:
    """The commit of a revision, and its files."""
    try:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
        files = {f.rfilename: (f.size, f.lfs.sha256 if f.lfs else f.blob_id) for f in info.siblings or ()}
        if not COMMIT.fullmatch(info.sha or ""):
            raise ValueError(f"the commit is {info.sha!r}")
        return str(info.sha), files
    except (HfHubHTTPError, HFValidationError):  # some of them are ValueErrors
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConnectionError("the answer is not that of a hub; it may be a login page") from error


def _shards(copy: Snapshot, files: Collection[str]) -> list[str]:
    """The weight files that the downloaded indices among `files` name."""
    indices = [name for name in files if ".index." in name and copy.has(name)]
    return list(dict.fromkeys(shard for index in indices for shard in copy.shards(index).values()))


def _fetch(copy: Snapshot, names: list[str], notices: list[str]) -> None:
    """Download the missing and damaged files, if the disk has room for them."""
    for name in names:
        if copy.has(name) and not copy.is_intact(name):
            notices.append(f"{name} of {copy.repo} is damaged in the cache; it is downloaded again.")
            copy.discard(name)
    wanted = [name for name in names if not copy.has(name)]
    if not wanted:
        return
    copy.save_record()
    total, done = sum(map(copy.size, wanted)), 0
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if total > free:
        raise OutputError(
            f"{copy.repo} needs {_megabytes(total)} in {cache}, which has {_megabytes(free)} free; make room, or set "
            "HF_HOME to a folder on a larger disk."
        )
    for name in wanted:
        try:
            attempt(partial(hf_hub_download, copy.repo, name, revision=copy.commit), copy.repo, name)
        except HubUnreachable as error:
            kept = f"{_megabytes(done)} of {_megabytes(total)} are downloaded and kept."
            raise HubUnreachable(f"{error} {kept}") from error
        except IntegrityError:
            copy.discard(name)
            raise
        if not copy.has(name):  # the client stores a file under the commit that the answer names
            raise HubUnreachable(
                f"{constants.ENDPOINT} answered for another commit of {copy.repo} than {copy.commit} ({name}); try "
                "again, and check the mirror in HF_ENDPOINT if it is set."
            )
        if not copy.is_intact(name):
            copy.discard(name)
            raise IntegrityError(
                f"{name} of {copy.repo} differs from the file that the hub announced, and was deleted; try again, and "
                "if the error stays, check the network or mirror."
            )
        done += copy.size(name)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _progress_bars(progress: bool) -> Iterator[None]:
    """Show the progress bars of the hub client, or none."""
    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
