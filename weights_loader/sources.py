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
from weights_loader.paths import safe_join

__all__ = ["KNOWN", "Home", "resolve", "safe_join"]

EMBEDDED = "sticker"
EMBEDDED_VARIANTS = {f"{EMBEDDED}-{task}": task for task in ("inpainting", "depth", "upscaling")}  # made of it
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Home:
    """Where a known model lives on the hub: the ids to ask, in this order, and ids that are gone from it.

    A former id is never asked, because anybody may register it anew; a copy that the cache holds under it is
    used.
    """

    ids: tuple[str, ...]
    former: tuple[str, ...] = ()


def _sd2(name: str) -> Home:  # removed by its owner in November 2025; the same weights live on
    return Home((f"sd2-community/{name}",), (f"stabilityai/{name}",))


def _sd15(name: str) -> Home:  # removed by its owner in August 2024
    return Home((f"stable-diffusion-v1-5/{name}", f"sd-legacy/{name}"), (f"runwayml/{name}",))


KNOWN = {
    "sd14": Home(("CompVis/stable-diffusion-v1-4",)),
    "sd15": _sd15("stable-diffusion-v1-5"),
    "sd15-inpainting": _sd15("stable-diffusion-inpainting"),
    "sd2-base": _sd2("stable-diffusion-2-base"),
    "sd2": _sd2("stable-diffusion-2"),
    "sd21-base": _sd2("stable-diffusion-2-1-base"),
    "sd21": _sd2("stable-diffusion-2-1"),
    "sd2-inpainting": _sd2("stable-diffusion-2-inpainting"),
    "sd2-depth": _sd2("stable-diffusion-2-depth"),
    "sdxl": Home(("stabilityai/stable-diffusion-xl-base-1.0",)),
    "sdxl-inpainting": Home(("diffusers/stable-diffusion-xl-1.0-inpainting-0.1",)),
    "sdxl-refiner": Home(("stabilityai/stable-diffusion-xl-refiner-1.0",)),
    "x4-upscaler": Home(("stabilityai/stable-diffusion-x4-upscaler",)),
}
_MOVED = {old: home for home in KNOWN.values() for old in home.former}
_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Path:
    """The folder (diffusers layout) or the single weight file that `source` means, downloaded if need be.

    `source` is read in this order: a known name ("sticker", "sd15"; a folder of that name is "./sd15"); a
    file or folder that exists; a hub id "owner/name". A pathlib.Path is always a file or folder.
    `revision` (branch, tag, commit) applies to the hub. So does `variant` ("fp16"): which of several weight
    files of a local folder is read is up to its reader. `offline` None means: as HF_HUB_OFFLINE says.

    Raises InputError: nothing that `source` could mean; HubError and what `hub.download` raises;
    UnsafeFileError: a device or pipe.
    """
    if not isinstance(source, str | Path) or not str(source) or "\0" in str(source):
        raise InputError(f"Source is {source!r}, expected a model name, a hub id, a folder or a file.")
    if source == EMBEDDED:
        _no_revision(revision, EMBEDDED)
        return _embedded()
    if source in KNOWN:
        return _from_home(KNOWN[str(source)], revision, variant, offline, progress)
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):  # which is False, not an error, for a name too long
        _no_revision(revision, path)
        if not path.is_dir() and not path.is_file():
            raise UnsafeFileError(f"{path} is a device, socket or pipe, expected a folder or a weight file.")
        return path
    if isinstance(source, Path) or path.suffix in WEIGHT_SUFFIXES or not _HUB_ID.fullmatch(source):
        raise InputError(
            f"{str(source)[:200]!r} is no known model, no file or folder here and no hub id 'owner/name'; "
            f"{_suggest(str(source))}"
        )
    if source in _MOVED:
        warnings.warn(f"{source} is gone from the hub; {_MOVED[source].ids[0]} has the same weights.", stacklevel=2)
        return _from_home(_MOVED[source], revision, variant, offline, progress)
    try:
        return _from_home(Home((source,)), revision, variant, offline, progress)
    except HubNotFound as error:
        raise HubNotFound(f"{error} ({_suggest(source)})") from error


def _embedded() -> Path:
    folder = Path(str(importlib.resources.files("minisd"))) / "assets" / EMBEDDED
    if not folder.is_dir():
        raise IntegrityError(f"The embedded model is missing from this installation ({folder}); reinstall minisd.")
    return folder


def _from_home(home: Home, revision: str | None, variant: str | None, offline: bool | None, progress: bool) -> Path:
    """The first of a model's ids that delivers; the first one's error if none does."""
    from huggingface_hub import constants

    from weights_loader.hub import download  # here, because local sources need no hub client

    for repo in home.former:
        with suppress(MinisdError):
            return download.from_cache(repo, revision=revision, variant=variant)
    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    first_error: HubError | None = None
    for repo in home.ids:
        try:
            if offline:
                return download.from_cache(repo, revision=revision, variant=variant)
            return download.download(repo, revision=revision, variant=variant, progress=progress)
        except HubError as error:
            first_error = first_error or error
            offline = offline or isinstance(error, HubUnreachable)  # another id would not be reached either
    assert first_error is not None
    raise first_error


def _no_revision(revision: str | None, source: str | Path) -> None:
    if revision is not None:
        raise InputError(f"Revision {revision!r} was given for {source}, but only models on the hub have revisions.")


def _suggest(source: str) -> str:
    names = [EMBEDDED, *EMBEDDED_VARIANTS, *KNOWN, *(repo for home in KNOWN.values() for repo in home.ids)]
    near = difflib.get_close_matches(source, names, n=3, cutoff=0.6)
    return (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"known models are {', '.join((EMBEDDED, *EMBEDDED_VARIANTS, *KNOWN))}."
    )
