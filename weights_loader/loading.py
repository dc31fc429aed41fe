"""Load a pipeline: from a folder in diffusers layout here, from an original single file in single_file.py."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minisd._internal import memory
from minisd._internal.json_files import read_json
from minisd._internal.model_files import is_file, is_folder, list_folder
from minisd.adapters.distilled_student import apply_student, student_from_tensors
from minisd.adapters.task_variants import apply_variant, variant_from_tensors
from minisd.configs import UNetConfig
from minisd.errors import InputError, MismatchError
from minisd.models import VAE, CLIPTextTransformer, PreviewDecoder, UNet
from minisd.pipeline import LOW_RES, Defaults, StableDiffusion
from minisd.pipeline.arguments import SDXL_DEFAULTS, UPSCALER_DEFAULTS
from minisd.schedulers import NoiseSchedule
from minisd.tokenizer import Tokenizer
from weights_loader import official_configs
from weights_loader.build import Network, build, check_blocks, is_of_encoder, is_position_ids
from weights_loader.devices import check_device, check_dtype
from weights_loader.formats.weight_file import open_weights
from weights_loader.model_folder import (
    DEFAULTS_FILE,
    LOW_RES_SCHEDULER,
    MODEL_INDEX,
    PREVIEW_FOLDER,
    SCHEDULER_CONFIG,
    ModelFolder,
    about,
)
from weights_loader.names import TensorSource, diffusers, expand
from weights_loader.names.old_attention import as_stored
from weights_loader.pixel_configs import pixel_unet_config
from weights_loader.preview_configs import preview_config
from weights_loader.settings import read_defaults, read_scheduler
from weights_loader.single_file import load_single_file
from weights_loader.sources import EMBEDDED, EMBEDDED_MODELS, FAST, locate, resolve
from weights_loader.vocabulary import check_vocabulary

FAST_STEPS = 4  # of the embedded model's student


@memory.translated("loading the model")
def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
    prediction_type: str | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
) -> StableDiffusion:
    """A ready pipeline from the embedded model, a known name, a hub id, a model folder or an original single file.

    source: "sticker", "sticker-fast", ...; "sd15", "sdxl", ...; "owner/name"; a folder in diffusers layout; a
    .safetensors or .ckpt file.
    dtype: None keeps the precision of each weight in the file, to save it again; mixed ones cannot always draw.
    variant: which of several weight files to read, such as "fp16". revision, offline, progress: for the hub.
    prediction_type: what the UNet predicts ("epsilon", "v_prediction", "sample"), in place of what the files say.
    tokenizer: for single files, which contain no vocabulary: a Tokenizer, or a folder with vocab.json and merges.txt.
    None uses the vocabulary beside the file, or else CLIP's from the hub or its cache. Learned words that minisd stored
    in the file are added to it.

    Tensors stay views of the mapped file where `dtype` and `device` allow, so do not rewrite the file in place.
    Raises the classes of minisd.errors; a model is loaded completely or not at all.
    """
    if dtype is not None:
        check_dtype(dtype)
    device = check_device(device)
    if source in EMBEDDED_MODELS and source != EMBEDDED:
        sd = _embedded_variant(load(EMBEDDED, device=device, dtype=dtype), str(source))
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
        notices += _without_output(sd)
        sd.source = str(source)
        return sd
    finally:
        for notice in notices:
            warnings.warn(notice, stacklevel=3)


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

    kind: UNet, VAE, CLIPTextTransformer or PreviewDecoder. Raises MismatchError, FileFormatError, InputError,
    UnsafeFileError.
    """
    folder = ModelFolder(path, variant)
    network = _network(folder, kind, part, device, dtype)
    for notice in folder.notices:
        warnings.warn(notice, stacklevel=2)
    return network


def load_folder(
    folder: ModelFolder,
    device: torch.device | str,
    dtype: torch.dtype | None,
    prediction_type: str | None,
    tokenizer: Tokenizer | None,
) -> StableDiffusion:
    """The pipeline in a model folder. Raises MismatchError, FileFormatError, InputError, UnsafeFileError.

    A MismatchError is about all parts that do not fit.
    """
    first, *second = folder.text_suffixes
    with about(folder.path / "scheduler" / SCHEDULER_CONFIG):
        scheduler = read_scheduler(folder.json("scheduler", SCHEDULER_CONFIG), folder.notices, prediction_type)
    defaults, low_res = stored_defaults(folder), _low_res_schedule(folder)
    tokenizers = [Tokenizer.from_folder(folder.file(f"tokenizer{first}")) if tokenizer is None else tokenizer]
    tokenizers += [Tokenizer.from_folder(folder.file(f"tokenizer{suffix}")) for suffix in second]
    kinds: dict[str, type[nn.Module]] = {f"text_encoder{s}": CLIPTextTransformer for s in folder.text_suffixes}
    kinds |= {"vae": VAE, "unet": UNet}
    if is_file(folder.path / PREVIEW_FOLDER / "config.json"):
        kinds[PREVIEW_FOLDER] = PreviewDecoder
    parts: dict[str, Any] = {}
    problems: list[str] = []
    for name, kind in kinds.items():
        try:
            parts[name] = _network(folder, kind, name, device, dtype)
        except MismatchError as error:
            problems.append(str(error))
    if problems:
        raise MismatchError(" ".join(problems))
    encoders = [parts[f"text_encoder{suffix}"] for suffix in folder.text_suffixes]
    for each, encoder in zip(tokenizers, encoders, strict=True):
        check_vocabulary(each, encoder.config)
    sd = StableDiffusion(
        tokenizer=tokenizers[0],
        text_encoder=encoders[0],
        vae=parts["vae"],
        unet=parts["unet"],
        scheduler=scheduler,
        defaults=defaults,
        low_res=low_res,
        tokenizer_2=tokenizers[1] if second else None,
        text_encoder_2=encoders[1] if second else None,
    )
    sd.preview_decoder = parts.get(PREVIEW_FOLDER)
    return sd


def _network(
    folder: ModelFolder, kind: type[Network], part: str, device: torch.device | str, dtype: torch.dtype | None
) -> Network:
    """A part of a model folder: its config gives the sizes; older files have other names for some modules."""
    json, tensors, what = folder.json(part), folder.weights(part), f"{folder.path / part}"
    ignorable = None
    with about(folder.path / part / "config.json"):
        config = _config(kind, json)
    check_blocks(config.layers if kind is CLIPTextTransformer else config.blocks, tensors, what)
    if kind is UNet:
        modules = diffusers.unet(config)
        _check_channels(config, tensors.shapes.get("conv_in.weight", ()), what)
    elif kind is VAE:
        modules = diffusers.vae(config)
    elif kind is PreviewDecoder:
        modules, ignorable = diffusers.preview_decoder(config), is_of_encoder
    else:
        ignorable = is_position_ids
        has_prefix = any(name.startswith("text_model.") for name in tensors.shapes)
        modules = diffusers.text_encoder(config, "text_model." if has_prefix else "")

    def sources(names: list[str]) -> dict[str, TensorSource]:
        return as_stored(expand(modules, names), tensors.shapes)

    return build(lambda: kind(config), sources, tensors, what, device, dtype, ignorable)


def _config(kind: type[nn.Module], json: dict[str, Any]) -> Any:
    """The config of a network from its config.json. Raises MismatchError."""
    if kind is UNet:
        is_pixel_unet = json.get("_class_name") == "UNet2DModel"
        return pixel_unet_config(json) if is_pixel_unet else official_configs.unet_config(json)
    if kind is PreviewDecoder:
        return preview_config(json)
    return official_configs.vae_config(json) if kind is VAE else official_configs.text_config(json)


def _check_channels(config: UNetConfig, shape: tuple[int, ...], what: str) -> None:
    """Compare config and tensors where files are likely to be mixed up; build() compares everything else."""
    if len(shape) == 4 and shape[1] != config.in_channels:
        raise MismatchError(
            f"{what}: the weights have {shape[1]} input channels, config.json has {config.in_channels} "
            f"({config.family}); one of the two files belongs to another model."
        )


def stored_defaults(folder: ModelFolder) -> Defaults:
    """The recommended settings: those that minisd stored in the folder, else those of the model's family."""
    if DEFAULTS_FILE in list_folder(folder.path):
        return read_defaults(read_json(folder.file(DEFAULTS_FILE)), DEFAULTS_FILE)
    if folder.is_xl:
        zeros = {"zero_empty_prompt": folder.index.get("force_zeros_for_empty_prompt", True)}
        return read_defaults({**asdict(SDXL_DEFAULTS), **zeros}, MODEL_INDEX)
    return UPSCALER_DEFAULTS if is_folder(folder.path / LOW_RES_SCHEDULER) else Defaults()


def _low_res_schedule(folder: ModelFolder) -> NoiseSchedule:
    """The schedule that noises the small image of an upscaler."""
    if not is_folder(folder.path / LOW_RES_SCHEDULER):
        return LOW_RES
    with about(folder.path / LOW_RES_SCHEDULER / SCHEDULER_CONFIG):
        return read_scheduler(folder.json(LOW_RES_SCHEDULER, SCHEDULER_CONFIG), folder.notices).schedule


def _without_output(sd: StableDiffusion) -> list[str]:
    """A sentence for each network whose last convolution is zero, as in a network that was never trained."""
    last = {"UNet": sd.unet.conv_out, "VAE's decoder": sd.vae.decoder.conv_out}
    smallest = torch.finfo(torch.float32).tiny
    return [
        f"The last convolution of the {name} is zero or too small to compute with, so its output says nothing about "
        "the image; download the model again, or train it."
        for name, layer in last.items()
        if layer.weight.abs().max() < smallest
    ]


def _embedded_variant(sd: StableDiffusion, name: str) -> StableDiffusion:
    """The embedded model for another task, or its student; see minisd.adapters."""
    variant = name.removeprefix(f"{EMBEDDED}-")
    path = resolve(EMBEDDED) / "variants" / f"{variant}.safetensors"
    if not path.is_file():
        raise InputError(f"the embedded model of this installation lacks {path.name}; reinstall minisd.")
    file = open_weights(path)
    tensors = {each: file.tensor(each) for each in file.shapes}
    if name == FAST:
        return apply_student(sd, student_from_tensors(sd.unet, tensors), FAST_STEPS)
    return apply_variant(sd, variant_from_tensors(sd.unet, variant, tensors))
