"""Where weights come from: a name, a hub id, a folder or a file becomes a path on this machine."""

import difflib
import importlib.resources
import os
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minisd.errors import (
    HubError,
    HubNotFound,
    HubUnreachable,
    InputError,
    IntegrityError,
    MinisdError,
    UnsafeFileError,
)

EMBEDDED = "sticker"
EMBEDDED_TASKS = {f"{EMBEDDED}-{task}": task for task in ("inpainting", "depth", "upscaling")}
FAST = f"{EMBEDDED}-fast"  # a distilled student of few steps
EMBEDDED_MODELS = (EMBEDDED, *EMBEDDED_TASKS, FAST)
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class HubIds:
    """The ids of a known model on the hub, tried in this order, and its former ids, which were removed from the hub.

    A former id is never requested, because anybody may register it anew. A copy in the cache under a former id is used.
    """

    ids: tuple[str, ...]
    former: tuple[str, ...] = ()


def _sd2(name: str) -> HubIds:  # removed by its owner in November 2025; another owner has the same weights
    return HubIds((f"sd2-community/{name}",), (f"stabilityai/{name}",))


def _sd15(name: str) -> HubIds:  # removed by its owner in August 2024
    return HubIds((f"stable-diffusion-v1-5/{name}", f"sd-legacy/{name}"), (f"runwayml/{name}",))


KNOWN = {
    "sd14": HubIds(("CompVis/stable-diffusion-v1-4",)),
    "sd15": _sd15("stable-diffusion-v1-5"),
    "sd15-inpainting": _sd15("stable-diffusion-inpainting"),
    "sd2-base": _sd2("stable-diffusion-2-base"),
    "sd2": _sd2("stable-diffusion-2"),
    "sd21-base": _sd2("stable-diffusion-2-1-base"),
    "sd21": _sd2("stable-diffusion-2-1"),
    "sd2-inpainting": _sd2("stable-diffusion-2-inpainting"),
    "sd2-depth": _sd2("stable-diffusion-2-depth"),
    "sdxl": HubIds(("stabilityai/stable-diffusion-xl-base-1.0",)),
    "sdxl-inpainting": HubIds(("diffusers/stable-diffusion-xl-1.0-inpainting-0.1",)),
    "sdxl-refiner": HubIds(("stabilityai/stable-diffusion-xl-refiner-1.0",)),
    "x4-upscaler": HubIds(("stabilityai/stable-diffusion-x4-upscaler",)),
}
_MOVED = {former: known for known in KNOWN.values() for former in known.former}
HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Path:
    """The folder (diffusers layout) or the single weight file of a source, downloaded if necessary.

    source: a known name ("sticker", "sd15"), else a file or folder that exists, else a hub id "owner/name". A folder
    with a known name is "./sd15". A pathlib.Path is always a file or folder.
    revision: branch, tag or commit on the hub. variant: which of several weight files to download, such as "fp16".
    offline: use the cache of the hub alone; None reads HF_HUB_OFFLINE.

    Raises InputError (no such source), HubError and what hub.download raises, UnsafeFileError (a device or pipe).
    """
    notices: list[str] = []
    try:
        return locate(source, notices, revision, variant, offline, progress)
    finally:
        for notice in notices:
            warnings.warn(notice, stacklevel=2)


def locate(
    source: str | Path,
    notices: list[str],
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Path:
    """`resolve` without warnings: what users should know is added to `notices`."""
    if not isinstance(source, str | Path) or not str(source) or "\0" in str(source):
        raise InputError(f"source is {source!r}, expected a model name, a hub id, a folder or a file.")
    if source == EMBEDDED:
        _refuse_revision(revision, EMBEDDED)
        return _embedded()
    if source in KNOWN:
        return _from_hub(KNOWN[str(source)], notices, revision, variant, offline, progress)
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):  # unlike path.exists(), False for a name that is too long
        _refuse_revision(revision, path)
        if not path.is_dir() and not path.is_file():
            raise UnsafeFileError(f"{path} is a device, socket or pipe, expected a folder or a weight file.")
        return path
    if isinstance(source, Path) or path.suffix in WEIGHT_SUFFIXES or not HUB_ID.fullmatch(source):
        raise InputError(
            f"{str(source)[:200]!r} is no known model, no file or folder, and no hub id 'owner/name'; "
            f"{_suggest(str(source))}"
        )
    if source in _MOVED:
        notices.append(f"{source} was removed from the hub; {_MOVED[source].ids[0]} has the same weights.")
        return _from_hub(_MOVED[source], notices, revision, variant, offline, progress)
    try:
        return _from_hub(HubIds((source,)), notices, revision, variant, offline, progress)
    except HubNotFound as error:
        from huggingface_hub.errors import RepositoryNotFoundError

        if not isinstance(error.__cause__, RepositoryNotFoundError):  # the repository is there
            raise
        raise HubNotFound(f"{error} ({_suggest(source)})") from error


def _embedded() -> Path:
    folder = Path(str(importlib.resources.files("minisd"))) / "assets" / EMBEDDED
    if not folder.is_dir():
        raise IntegrityError(f"the embedded model is missing from this installation ({folder}); reinstall minisd.")
    return folder


def _from_hub(
    model: HubIds, notices: list[str], revision: str | None, variant: str | None, offline: bool | None, progress: bool
) -> Path:
    """The folder of the first id that can be loaded. If there is none, the error of the first id."""
    from huggingface_hub import constants

    from weights_loader.hub import download  # imported here, because local sources do not need the hub client

    for repo in model.former:
        with suppress(MinisdError):
            return download.from_cache(repo, revision, variant)
    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    first_error: HubError | None = None
    for repo in model.ids:
        try:
            if offline:
                return download.from_cache(repo, revision, variant)
            return download.download(repo, notices, revision, variant, progress)
        except HubError as error:
            first_error = first_error or error
            offline = offline or isinstance(error, HubUnreachable)  # another id would not be reached either
    assert first_error is not None
    raise first_error


def _refuse_revision(revision: str | None, source: str | Path) -> None:
    if revision is not None:
        raise InputError(f"revision is {revision!r} for {source}, but only models on the hub have revisions.")


def _suggest(source: str) -> str:
    names = [*EMBEDDED_MODELS, *KNOWN, *(repo for known in KNOWN.values() for repo in known.ids)]
    similar = difflib.get_close_matches(source, names, n=3, cutoff=0.6)
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    return f"known models are {', '.join((*EMBEDDED_MODELS, *KNOWN))}."
