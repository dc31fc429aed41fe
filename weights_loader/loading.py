"""Load a pipeline: from a folder in diffusers layout here, from an original single file in single_file.py."""

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from minisd._internal.json_files import read_json
from minisd.adapters.task_variants import apply_variant, variant_from_tensors
from minisd.configs import UNetConfig
from minisd.errors import InputError, MismatchError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import LOW_RES, Defaults, StableDiffusion
from minisd.pipeline.arguments import SDXL_DEFAULTS, UPSCALER_DEFAULTS
from minisd.schedulers import NoiseSchedule, Scheduler
from minisd.tokenizer import Tokenizer
from weights_loader import official_configs
from weights_loader.build import Network, build, is_position_ids
from weights_loader.devices import check_device, check_dtype
from weights_loader.formats.weight_file import open_weights
from weights_loader.model_folder import DEFAULTS, LOW_RES_SCHEDULER, SCHEDULER_CONFIG, ModelFolder
from weights_loader.names import diffusers, expand
from weights_loader.pixel_configs import pixel_unet_config
from weights_loader.single_file import load_single_file
from weights_loader.sources import EMBEDDED, EMBEDDED_VARIANTS, locate, resolve


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
    variant: which of several weight files to read, such as "fp16". revision, offline, progress: for the hub.
    prediction_type: what the UNet predicts ("epsilon", "v_prediction", "sample"), in place of what the files say.
    tokenizer: for single files, which contain no vocabulary: a Tokenizer, or a folder with vocab.json and merges.txt.
    None uses the vocabulary beside the file, or else CLIP's from the hub or its cache.

    Tensors stay views of the mapped file where `dtype` and `device` allow, so do not rewrite the file in place.
    Raises the classes of minisd.errors; a model is loaded completely or not at all.
    """
    check_dtype(dtype)
    device = check_device(device)
    if source in EMBEDDED_VARIANTS:
        sd = _embedded_variant(load(EMBEDDED, device=device, dtype=dtype), EMBEDDED_VARIANTS[str(source)])
        sd.source = str(source)
        return sd
    notices: list[str] = []
    try:
        path = locate(source, notices, revision=revision, variant=variant, offline=offline, progress=progress)
        if isinstance(tokenizer, str | Path):
            tokenizer = Tokenizer.from_folder(tokenizer)
        if path.is_dir():
            folder = ModelFolder(path, variant)
            sd = load_folder(folder, device, dtype, prediction_type, tokenizer)
            notices += folder.notices
        else:
            file = open_weights(path)
            sd = load_single_file(file, device, dtype, prediction_type, tokenizer, offline=offline, progress=progress)
            notices += [f"{path.name}: {notice}" for notice in file.notices]
        sd.source = str(source)
        return sd
    finally:
        for notice in notices:
            warnings.warn(notice, stacklevel=2)


def load_network(
    path: Path,
    kind: type[Network],
    part: str = "",
    *,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Network:
    """One network in diffusers layout: a part of the model folder `path`, such as "unet", or the folder itself.

    kind: UNet, VAE or CLIPTextTransformer. Raises MismatchError, FileFormatError, InputError, UnsafeFileError.
    """
    folder = ModelFolder(path, variant)
    network = _network(folder, kind, part, device, dtype)
    for notice in folder.notices:
        warnings.warn(notice, stacklevel=2)
    return network


def load_folder(
    folder: ModelFolder,
    device: torch.device | str,
    dtype: torch.dtype,
    prediction_type: str | None,
    tokenizer: Tokenizer | None,
) -> StableDiffusion:
    """The pipeline in a model folder. Raises MismatchError, FileFormatError, InputError, UnsafeFileError."""
    first, *second = folder.text_suffixes
    scheduler = folder.json("scheduler", SCHEDULER_CONFIG)
    if prediction_type is not None:
        scheduler["prediction_type"] = prediction_type

    def text_encoder(suffix: str) -> CLIPTextTransformer:
        return _network(folder, CLIPTextTransformer, f"text_encoder{suffix}", device, dtype)

    return StableDiffusion(
        tokenizer=Tokenizer.from_folder(folder.file(f"tokenizer{first}")) if tokenizer is None else tokenizer,
        text_encoder=text_encoder(first),
        vae=_network(folder, VAE, "vae", device, dtype),
        unet=_network(folder, UNet, "unet", device, dtype),
        scheduler=Scheduler.from_config(scheduler),
        defaults=_defaults(folder),
        low_res=_low_res_schedule(folder),
        tokenizer_2=Tokenizer.from_folder(folder.file(f"tokenizer{second[0]}")) if second else None,
        text_encoder_2=text_encoder(second[0]) if second else None,
    )


def _network(
    folder: ModelFolder, kind: type[Network], part: str, device: torch.device | str, dtype: torch.dtype
) -> Network:
    """A part of a model folder: its config gives the sizes; older files have other names for some modules."""
    json, tensors, what = folder.json(part), folder.weights(part), f"{folder.path / part}"
    old_attention = any(name.endswith("attentions.0.query.weight") for name in tensors.shapes)
    config: Any
    ignorable = None
    if kind is UNet:
        is_pixel_unet = json.get("_class_name") == "UNet2DModel"
        config = pixel_unet_config(json) if is_pixel_unet else official_configs.unet_config(json)
        modules = diffusers.unet(config, old_attention)
        _check_channels(config, tensors.shapes.get("conv_in.weight", ()), what)
    elif kind is VAE:
        config = official_configs.vae_config(json)
        modules = diffusers.vae(config, old_attention)
    else:
        config, ignorable = official_configs.text_config(json), is_position_ids
        has_prefix = any(name.startswith("text_model.") for name in tensors.shapes)
        modules = diffusers.text_encoder(config, "text_model." if has_prefix else "")
    return build(lambda: kind(config), lambda names: expand(modules, names), tensors, what, device, dtype, ignorable)


def _check_channels(config: UNetConfig, shape: tuple[int, ...], what: str) -> None:
    """Compare config and tensors where files are likely to be mixed up; build() compares everything else."""
    if len(shape) == 4 and shape[1] != config.in_channels:
        raise MismatchError(
            f"{what}: the weights have {shape[1]} input channels, config.json has {config.in_channels} "
            f"({config.family}); one of the two files belongs to another model."
        )


def _defaults(folder: ModelFolder) -> Defaults:
    """The recommended settings: those that minisd stored in the folder, else those of the model's family."""
    path = folder.path / DEFAULTS
    if path.is_file():
        stored = read_json(path)
        return Defaults(**{each.name: stored[each.name] for each in fields(Defaults) if each.name in stored})
    if folder.is_xl:
        return replace(SDXL_DEFAULTS, zero_empty_prompt=bool(folder.index.get("force_zeros_for_empty_prompt", True)))
    return UPSCALER_DEFAULTS if (folder.path / LOW_RES_SCHEDULER).is_dir() else Defaults()


def _low_res_schedule(folder: ModelFolder) -> NoiseSchedule:
    """The schedule that noises the small image of an upscaler."""
    if not (folder.path / LOW_RES_SCHEDULER).is_dir():
        return LOW_RES
    return Scheduler.from_config(folder.json(LOW_RES_SCHEDULER, SCHEDULER_CONFIG)).schedule


def _embedded_variant(sd: StableDiffusion, task: str) -> StableDiffusion:
    """The embedded model for another task; see minisd.adapters.task_variants."""
    path = resolve(EMBEDDED) / "variants" / f"{task}.safetensors"
    if not path.is_file():
        raise InputError(f"the embedded model of this installation lacks {path.name}; reinstall minisd.")
    file = open_weights(path)
    variant = variant_from_tensors(sd.unet, task, {name: file.tensor(name) for name in file.shapes})
    return apply_variant(sd, variant)
