"""Load, inspect and save Stable Diffusion models in the official layouts.

import weights_loader
sd = weights_loader.load("sticker")
clip, tokenizer = weights_loader.load_clip("clip-vit-large-patch14")
"""

import warnings
from pathlib import Path

import torch

from minisd.adapters.task_variants import variant_from, varied
from minisd.errors import DeviceError, InputError, MismatchError
from minisd.models import CLIP
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from weights_loader import detect
from weights_loader.adapters import load_embedding, load_lora, save_embedding, save_lora
from weights_loader.clip import load_clip_folder, save_clip_folder
from weights_loader.folder import load_folder
from weights_loader.formats.weight_file import open_weights
from weights_loader.inspection import Inspection, inspect_path
from weights_loader.saving import save_folder, save_ldm
from weights_loader.single_file import load_single_file, text_sources
from weights_loader.sources import EMBEDDED, EMBEDDED_VARIANTS, resolve
from weights_loader.vocabulary import find_tokenizer

__all__ = [
    "Inspection",
    "inspect",
    "load",
    "load_clip",
    "load_embedding",
    "load_lora",
    "save",
    "save_clip",
    "save_embedding",
    "save_lora",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
    prediction_type: str | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
) -> StableDiffusion:
    """A ready pipeline from the embedded model, a known name, a hub id, a model folder or an original single file.

    source: "sticker", "sticker-depth", ...; "sd15", "sdxl", ...; "owner/name"; a folder in diffusers layout; a
    .safetensors or .ckpt file.
    variant: which of several weight files, as "fp16". revision, offline, progress: for the hub.
    prediction_type: overrides what the model's files say the UNet predicts ("epsilon", "v_prediction", "sample").
    tokenizer: for single files, which hold no vocabulary: a Tokenizer, or a folder with vocab.json and merges.txt;
    by default the one beside the file, else CLIP's from the hub or its cache.

    Tensors stay views of the mapped file where `dtype` and `device` allow, so do not rewrite the file in place.
    Raises the classes of minisd.errors: nothing half-loaded is ever returned.
    """
    _check_dtype(dtype)
    where = check_device(device)
    if source in EMBEDDED_VARIANTS:
        sd = load(EMBEDDED, device=device, dtype=dtype)
        return _embedded_variant(sd, EMBEDDED_VARIANTS[str(source)])
    path = resolve(source, revision=revision, variant=variant, offline=offline, progress=progress)
    given = Tokenizer.from_folder(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    if path.is_dir():
        return load_folder(path, where, dtype, variant, prediction_type, given)
    file = open_weights(path)
    for notice in file.notices:
        warnings.warn(f"{path.name}: {notice}", stacklevel=2)
    layout = detect.layout(file.shapes, path)
    if layout != "ldm":
        raise MismatchError(
            f"{path} is one component ({layout}) in diffusers layout; load the folder of the whole model, "
            "where its model_index.json is."
        )
    if given is None:
        given = find_tokenizer(path, is_openclip=text_sources(file)[0].is_openclip, offline=offline, progress=progress)
    return load_single_file(file, where, dtype, prediction_type, given)


def _embedded_variant(sd: StableDiffusion, task: str) -> StableDiffusion:
    """The embedded model for another task; see minisd.adapters.task_variants."""
    path = resolve(EMBEDDED) / "variants" / f"{task}.safetensors"
    if not path.is_file():
        raise InputError(f"this installation has no {path.name} of the embedded model; reinstall minisd.")
    file = open_weights(path)
    return varied(sd, variant_from(sd.unet, task, {name: file.tensor(name) for name in file.shapes}))


def inspect(source: str | Path) -> Inspection:
    """What is in a file or folder: layout, family, components, dtypes, surprises; print it for a table."""
    return inspect_path(resolve(source, offline=True))


def save(
    sd: StableDiffusion,
    target: str | Path,
    *,
    layout: str = "diffusers",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a pipeline: layout "diffusers" a folder, "ldm" one .safetensors file. Raises InputError, OutputError.

    dtype: convert the weights, for instance to torch.float16; by default as they are.
    """
    if dtype is not None:
        _check_dtype(dtype)
    path = Path(target)
    if layout == "diffusers":
        save_folder(sd, path, dtype, overwrite)
    elif layout == "ldm":
        save_ldm(sd, path, dtype, overwrite)
    else:
        raise InputError(f"layout is {layout!r}, expected 'diffusers' or 'ldm'.")
    return path


def load_clip(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[CLIP, Tokenizer]:
    """Both halves of CLIP, and the tokenizer for its texts.

    source: "sticker"; a model folder that has a folder `clip`; a folder in the layout of transformers' CLIPModel, such
    as openai/clip-vit-large-patch14. Raises the classes of minisd.errors: nothing half-loaded is ever returned.
    """
    _check_dtype(dtype)
    where = check_device(device)
    folder = resolve(source) if source == EMBEDDED else Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"{source} is no folder here, expected 'sticker' or a folder in the layout of transformers' CLIPModel; "
            "`hf download openai/clip-vit-large-patch14` fetches such a folder and names it."
        )
    return load_clip_folder(folder, where, dtype)


def save_clip(
    clip: CLIP,
    tokenizer: Tokenizer | None,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder in the layout of transformers' CLIPModel. Raises InputError, OutputError.

    tokenizer: None where the vocabulary already is in a folder `tokenizer` beside the target.
    dtype: convert the weights, for instance to torch.float16; by default as they are.
    """
    if dtype is not None:
        _check_dtype(dtype)
    path = Path(target)
    save_clip_folder(clip, tokenizer, path, dtype, overwrite)
    return path


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(str(each) for each in DTYPES)}.")


def check_device(device: torch.device | str) -> torch.device:
    """A device that this machine has; DeviceError otherwise."""
    have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    have += ["mps"] if torch.backends.mps.is_available() else []
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device is {device!r}, expected one of {', '.join(have)}.") from error
    if str(found) not in have and not (found.type == "cuda" and found.index is None and "cuda:0" in have):
        raise DeviceError(f"device {device!r} is not on this machine; it has {', '.join(have)}.")
    return found
