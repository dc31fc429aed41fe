"""A model in diffusers layout: a folder with a folder for each component."""

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from minisd.configs import UNetConfig
from minisd.errors import FileFormatError, InputError, MismatchError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import LOW_RES, Defaults, StableDiffusion
from minisd.pipeline.request import SDXL_DEFAULTS, UPSCALER_DEFAULTS
from minisd.schedulers import NoiseSchedule, Scheduler
from minisd.tokenizer import Tokenizer
from weights_loader import official_configs
from weights_loader.build import Merged, Tensors, build
from weights_loader.detect import family
from weights_loader.formats.weight_file import WeightFile, open_weights
from weights_loader.hub.repo_files import MODEL_INDEX, choose_weights, read_json, shards, variants
from weights_loader.names import Place, diffusers, expand
from weights_loader.paths import safe_join

DEFAULTS = "minisd.json"  # how a model is best run; only in folders that minisd wrote
PIPELINES = {
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
}
LOW_RES_SCHEDULER = "low_res_scheduler"  # of upscalers: only its noise schedule counts


def load_folder(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    variant: str | None = None,
    prediction_type: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> StableDiffusion:
    """The pipeline in a folder. Raises MismatchError, FileFormatError, InputError and what reading files raises."""
    index = read_index(folder)
    first, *second = text_parts(index)
    scheduler_json = component_json(folder, "scheduler", "scheduler_config.json")
    if prediction_type is not None:
        scheduler_json = {**scheduler_json, "prediction_type": prediction_type}
    return StableDiffusion(
        tokenizer=Tokenizer.from_folder(safe_join(folder, f"tokenizer{first}")) if tokenizer is None else tokenizer,
        text_encoder=load_text_encoder(folder, variant, device, dtype, f"text_encoder{first}"),
        vae=load_vae(folder, variant, device, dtype),
        unet=load_unet(folder, variant, device, dtype),
        scheduler=Scheduler.from_config(scheduler_json),
        defaults=read_defaults(folder, index),
        low_res=read_low_res(folder),
        tokenizer_2=Tokenizer.from_folder(safe_join(folder, f"tokenizer{second[0]}")) if second else None,
        text_encoder_2=(
            load_text_encoder(folder, variant, device, dtype, f"text_encoder{second[0]}") if second else None
        ),
    )


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a folder that minisd can run."""
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise MismatchError(
            f"{folder} has no {MODEL_INDEX}, so it is no model in diffusers layout; name the folder that holds "
            "unet/, vae/ and text_encoder/, or one weight file."
        )
    index = read_json(path)
    if index.get("_class_name") not in PIPELINES:
        raise MismatchError(
            f"{folder} is a {index.get('_class_name')!r}, expected a StableDiffusionPipeline; "
            "minisd runs SD 1.x, 2.x and SDXL."
        )
    return index


def text_parts(index: dict[str, Any]) -> list[str]:
    """Suffixes of the text encoders that a model index names: [""], SDXL ["", "_2"], its refiner ["_2"]."""
    if not index["_class_name"].startswith("StableDiffusionXL"):
        return [""]
    return [suffix for suffix in ("", "_2") if (index.get(f"text_encoder{suffix}") or [None])[0] is not None]


def read_low_res(folder: Path) -> NoiseSchedule:
    """How an upscaler's small picture is noised: as its folder says, if it is one."""
    if not (folder / LOW_RES_SCHEDULER).is_dir():
        return LOW_RES
    return Scheduler.from_config(component_json(folder, LOW_RES_SCHEDULER, "scheduler_config.json")).schedule


def read_defaults(folder: Path, index: dict[str, Any]) -> Defaults:
    """How the model is best run: as its folder says, else as everybody runs Stable Diffusion."""
    path = folder / DEFAULTS
    if not path.is_file() and index["_class_name"].startswith("StableDiffusionXL"):
        return replace(SDXL_DEFAULTS, zero_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)))
    if not path.is_file() and (folder / LOW_RES_SCHEDULER).is_dir():
        return UPSCALER_DEFAULTS
    stored = read_json(path) if path.is_file() else {}
    return Defaults(**{each.name: stored[each.name] for each in fields(Defaults) if each.name in stored})


def load_unet(
    folder: Path, variant: str | None, device: torch.device | str, dtype: torch.dtype, component: str = "unet"
) -> UNet:
    """The UNet of a model folder."""
    config = official_configs.unet_config(component_json(folder, component))
    tensors = component_weights(folder, component, variant)
    old = any(name.endswith("attentions.0.query.weight") for name in tensors.shapes)

    def places(names: list[str]) -> dict[str, Place]:
        return expand(diffusers.unet(config, old_attention=old), names)

    _check_family(config, tensors, folder / component)
    return build(lambda: UNet(config), places, tensors, _nothing, f"{folder / component}", device, dtype)


def load_vae(
    folder: Path, variant: str | None, device: torch.device | str, dtype: torch.dtype, component: str = "vae"
) -> VAE:
    """The autoencoder of a model folder, with old or new names of its attention."""
    config = official_configs.vae_config(component_json(folder, component))
    tensors = component_weights(folder, component, variant)
    old = any(name.endswith("attentions.0.query.weight") for name in tensors.shapes)

    def places(names: list[str]) -> dict[str, Place]:
        return expand(diffusers.vae(config, old_attention=old), names)

    return build(lambda: VAE(config), places, tensors, _nothing, f"{folder / component}", device, dtype)


def load_text_encoder(
    folder: Path, variant: str | None, device: torch.device | str, dtype: torch.dtype, component: str = "text_encoder"
) -> CLIPTextTransformer:
    """A text encoder of a model folder, with or without the prefix `text_model.`."""
    config = official_configs.text_config(component_json(folder, component))
    tensors = component_weights(folder, component, variant)
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors.shapes) else ""

    def places(names: list[str]) -> dict[str, Place]:
        return expand(diffusers.text_encoder(config, prefix), names)

    what = f"{folder / component}"
    return build(lambda: CLIPTextTransformer(config), places, tensors, is_position_ids, what, device, dtype)


def component_json(folder: Path, component: str, name: str = "config.json") -> dict[str, Any]:
    """The config file of a component."""
    path = safe_join(folder, f"{component}/{name}")
    if not path.is_file():
        raise MismatchError(f"{folder} has no {component}/{name}; the model is incomplete, fetch it again.")
    return read_json(path)


def component_weights(folder: Path, component: str, variant: str | None = None) -> Tensors:
    """The weights of a component, mapped: one file, or all shards that an index names.

    An empty component is the folder itself.
    """
    part, prefix = (safe_join(folder, component), f"{component}/") if component else (folder, "")
    names = [path.name for path in part.iterdir()] if part.is_dir() else []
    chosen = choose_weights(names, variant)
    if chosen is None:
        held = variants([prefix + name for name in names])
        also = f" (only the variant {', '.join(held)}: pass variant={held[0]!r})" if held else ""
        raise MismatchError(f"{part} holds no weights that minisd reads{also}; expected a .safetensors or .bin file.")
    if variant is not None and f".{variant}." not in chosen:
        raise InputError(
            f"{part} has no weights of variant {variant!r}; it has "
            f"{', '.join([*variants([f'{component}/{name}' for name in names]), 'the plain ones'])}."
        )
    if not chosen.endswith(".json"):
        return _open(safe_join(folder, prefix + chosen))
    return _open_shards(folder, prefix + chosen)


def _open_shards(folder: Path, index: str) -> Merged:
    """Every shard that an index names, and nothing but what it says."""
    names = shards(folder, index)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise MismatchError(f"{folder} lacks the shards {', '.join(absent)} that {index} names; fetch them again.")
    files = {Path(name).name: _open(folder / name) for name in names}
    weight_map = read_json(folder / index)["weight_map"]
    for name, shard in weight_map.items():
        if name not in files[Path(shard).name].shapes:
            raise FileFormatError(f"{folder / index} says that {name} is in {shard}, but it is not; fetch both.")
    held = [name for file in files.values() for name in file.shapes]
    if len(held) != len(set(held)):
        twice = next(name for name in held if held.count(name) > 1)
        raise FileFormatError(f"{folder / index}: {twice} is in two shards; fetch the model again.")
    return Merged(files.values())


def _open(path: Path) -> WeightFile:
    file = open_weights(path)
    for notice in file.notices:
        warnings.warn(f"{path.name}: {notice}", stacklevel=2)
    return file


def _check_family(config: UNetConfig, tensors: Tensors, folder: Path) -> None:
    """The config against the tensors, where a mix-up is likely; build() compares the rest."""
    shape = tensors.shapes.get("conv_in.weight")
    if shape is not None and len(shape) == 4 and shape[1] != config.in_channels:
        raise MismatchError(
            f"{folder}: the weights read {shape[1]} channels, config.json says {config.in_channels} "
            f"({family(config)}); one of the two files belongs to another model."
        )


def is_position_ids(name: str) -> bool:
    """Whether a tensor of a checkpoint is 0, 1, 2, ...: a constant, in old files."""
    return name.endswith("embeddings.position_ids")


def _nothing(name: str) -> bool:
    return False
