"""Save a pipeline in either official layout: a folder as diffusers reads it, or one original (LDM) file."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd._internal import memory
from minisd._internal.atomic_files import check_target, write_json
from minisd._internal.atomic_folders import FileSet, replace_files
from minisd._internal.vocabulary_files import TOKENIZER_NAMES
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import TokenizerAndEncoder, size_count
from minisd.schedulers import DDPM
from weights_loader import official_configs
from weights_loader.devices import check_dtype, converted
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.model_folder import (
    DEFAULTS_FILE,
    LOW_RES_SCHEDULER,
    MODEL_INDEX,
    PIPELINES,
    PREVIEW_FOLDER,
    REFINER_PIPELINE,
    SCHEDULER_CONFIG,
    XL_PIPELINES,
)
from weights_loader.names import TensorSource, diffusers, expand, ldm, openclip, write
from weights_loader.preview_configs import preview_json
from weights_loader.single_file import ADDED_TOKENS, CONFIGS_KEY

# Patterns of all files that writers of models write, with variants and shards: what the new model lacks is removed
_WEIGHTS = r"(?:diffusion_pytorch_model|pytorch_model|model)[\w.-]*\.(?:safetensors|bin)(?:\.index(?:\.\w+)?\.json)?"
NETWORK_NAMES = rf"config\.json|{_WEIGHTS}"
CLIP_NAMES = rf"{NETWORK_NAMES}|(?:pre)?processor_config\.json|{TOKENIZER_NAMES}"
_MODEL_NAMES = rf"""
    {re.escape(MODEL_INDEX)}|{re.escape(DEFAULTS_FILE)}
    |(?:unet|vae|text_encoder(?:_2)?|{PREVIEW_FOLDER})/(?:{NETWORK_NAMES})?
    |(?:scheduler|{LOW_RES_SCHEDULER})/(?:{re.escape(SCHEDULER_CONFIG)})?
    |tokenizer(?:_2)?/(?:{TOKENIZER_NAMES})?
    |clip/(?:{CLIP_NAMES})?
"""
NETWORK_FILES = FileSet("config.json", re.compile(NETWORK_NAMES))
MODEL_FILES = FileSet(MODEL_INDEX, re.compile(_MODEL_NAMES, re.VERBOSE))


@memory.translated("saving the model")
def save(
    sd: StableDiffusion,
    target: str | Path,
    *,
    layout: str = "diffusers",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a pipeline: layout "diffusers" a folder, "ldm" one .safetensors file. Raises InputError, OutputError.

    A folder also keeps the preview decoder, which has no place in a single file.

    dtype: convert the weights, for instance to torch.float16; None keeps their dtype. Raises NumericalError for weights
    that it cannot hold.
    overwrite: replace a model. The target is wholly the old model or the new one, whenever this process ends. All files
    of the old model are removed, with variants, shards and its CLIP; other files in its folder are kept.
    """
    if dtype is not None:
        check_dtype(dtype)
    if layout == "diffusers":
        replace_files(target, lambda folder: write_folder(sd, folder, dtype), MODEL_FILES, overwrite)
    elif layout == "ldm":
        save_ldm(sd, target, dtype, overwrite)
    else:
        raise InputError(f"layout is {layout!r}, expected 'diffusers' or 'ldm'.")
    return Path(target)


def write_folder(sd: StableDiffusion, folder: Path, dtype: torch.dtype | None) -> None:
    """Write the files of a model in diffusers layout into an empty folder. Raises OutputError."""
    texts = text_components(sd)
    networks: dict[str, tuple[nn.Module, dict[str, object], dict[str, str]]] = {
        "unet": (sd.unet, official_configs.unet_json(sd.unet.config), diffusers.unet(sd.unet.config)),
        "vae": (sd.vae, official_configs.vae_json(sd.vae.config), diffusers.vae(sd.vae.config)),
    }
    for suffix, (_, encoder) in texts.items():
        config = encoder.config
        networks[f"text_encoder{suffix}"] = encoder, official_configs.text_json(config), diffusers.text_encoder(config)
    if (preview := sd.preview_decoder) is not None:
        networks[PREVIEW_FOLDER] = preview, preview_json(preview.config), diffusers.preview_decoder(preview.config)
    for name, (network, config_json, modules) in networks.items():
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        _write_network(network, config_json, modules, folder / name, dtype, stem)
    (folder / "scheduler").mkdir()
    write_json(sd.scheduler.to_config(), folder / "scheduler" / SCHEDULER_CONFIG)
    for suffix, (tokenizer, _) in texts.items():
        tokenizer.save(folder / f"tokenizer{suffix}")
    index = _index(sd)
    if sd.task == "upscaling":
        (folder / LOW_RES_SCHEDULER).mkdir()
        write_json(DDPM(sd.low_res).to_config(), folder / LOW_RES_SCHEDULER / SCHEDULER_CONFIG)
    write_json(asdict(sd.defaults), folder / DEFAULTS_FILE)
    write_json(index, folder / MODEL_INDEX)


def save_network(
    network: nn.Module,
    config_json: dict[str, object],
    modules: dict[str, str],
    folder: Path,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write a UNet or an autoencoder alone. modules: {our module: their module}. Raises OutputError."""

    def write(new: Path) -> None:
        _write_network(network, config_json, modules, new, dtype)

    replace_files(folder, write, NETWORK_FILES, overwrite)


def _write_network(
    network: nn.Module,
    config_json: dict[str, object],
    modules: dict[str, str],
    folder: Path,
    dtype: torch.dtype | None,
    stem: str = "diffusion_pytorch_model",
) -> None:
    folder.mkdir(exist_ok=True)
    state = network.state_dict()
    tensors = _stored(expand(modules, state), state, dtype)
    save_safetensors(tensors, folder / f"{stem}.safetensors", {"format": "pt"})
    write_json(config_json, folder / "config.json")


def text_components(sd: StableDiffusion) -> dict[str, TokenizerAndEncoder]:
    """The text encoders by the suffix of their official names: "", and "_2" for SDXL's second and the refiner's."""
    parts = sd.text_parts
    return dict(zip(("", "_2") if len(parts) == 2 or not sd.is_xl else ("_2",), parts, strict=False))


def _index(sd: StableDiffusion) -> dict[str, object]:
    """model_index.json: the official pipeline and the classes of its parts."""
    index: dict[str, object] = {
        "_diffusers_version": "0.42.1",  # the version of this layout; diffusers' inpainting pipeline requires it
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", type(sd.scheduler).official_name],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    texts = text_components(sd)
    for suffix in ("", "_2") if sd.is_xl else ("",):
        exists = suffix in texts
        projected = exists and texts[suffix].encoder.config.projection_width is not None
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        index[f"text_encoder{suffix}"] = ["transformers", kind] if exists else [None, None]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"] if exists else [None, None]
    if sd.is_xl:
        refiner = size_count(sd.text_parts, sd.unet.config) == 5
        index |= {
            "_class_name": REFINER_PIPELINE if refiner else XL_PIPELINES[sd.task],
            "force_zeros_for_empty_prompt": sd.defaults.zero_empty_prompt,
            "image_encoder": [None, None],
            **({"requires_aesthetics_score": True} if refiner else {}),
        }
        return index
    index |= {"_class_name": PIPELINES[sd.task], "requires_safety_checker": False, "safety_checker": [None, None]}
    if sd.task == "depth":
        index["depth_estimator"] = [None, None]
    if sd.task == "upscaling":
        index |= {LOW_RES_SCHEDULER: ["diffusers", DDPM.official_name], "max_noise_level": 350}
    return index


def save_ldm(sd: StableDiffusion, path: str | Path, dtype: torch.dtype | None, overwrite: bool) -> None:
    """Write one file in the original layout, with the configs of all parts and the learned words in its metadata.

    A text encoder with exact GELU is written as an OpenCLIP encoder, any other as a CLIP encoder. The last layer of
    OpenCLIP is not written, because SD 2.x does not use it and minisd does not load it.
    """
    check_target(path, overwrite)
    unet, vae = (network.state_dict() for network in (sd.unet, sd.vae))
    tensors = {
        ldm.UNET + name: tensor for name, tensor in _stored(expand(ldm.unet(sd.unet.config), unet), unet, dtype).items()
    }
    vae_sources = ldm.vae(sd.vae.config, list(vae))
    tensors |= {ldm.VAE + name: tensor for name, tensor in _stored(vae_sources, vae, dtype).items()}
    configs = {
        "unet": official_configs.unet_json(sd.unet.config),
        "vae": official_configs.vae_json(sd.vae.config),
        "scheduler": sd.scheduler.to_config(),
        LOW_RES_SCHEDULER: DDPM(sd.low_res).to_config(),
        "defaults": asdict(sd.defaults),
        ADDED_TOKENS: {f"tokenizer{s}": tokenizer.added_ids for s, (tokenizer, _) in text_components(sd).items()},
    }
    for i, (suffix, (_, encoder)) in enumerate(text_components(sd).items()):
        state, is_openclip = encoder.state_dict(), encoder.config.activation == "gelu"
        clip_prefix, openclip_prefix = ldm.text_prefixes(i) if sd.is_xl else (ldm.CLIP, ldm.OPENCLIP)
        if is_openclip:
            prefix, sources = openclip_prefix, openclip.text_encoder(list(state))
        else:
            prefix, sources = clip_prefix, expand(diffusers.text_encoder(encoder.config), state)
        tensors |= {prefix + name: tensor for name, tensor in _stored(sources, state, dtype).items()}
        configs[f"text_encoder{suffix}"] = official_configs.text_json(encoder.config)
    save_safetensors(tensors, path, {"format": "pt", CONFIGS_KEY: json.dumps(configs)}, overwrite)


def _stored(
    sources: Mapping[str, TensorSource], state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The tensors to store, converted. Raises NumericalError."""
    tensors = write(sources, state)
    return {name: tensor.contiguous() for name, tensor in converted(tensors, dtype).items()}
