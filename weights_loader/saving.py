"""Save a pipeline in either official layout, so that other software reads what minisd made."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd._internal.atomic_files import check_target, write_json
from minisd.errors import OutputError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import TextPart, size_count
from minisd.schedulers import DDPM
from weights_loader import official_configs
from weights_loader.folder import DEFAULTS, LOW_RES_SCHEDULER
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.names import Place, diffusers, expand, ldm, openclip, write
from weights_loader.single_file import CONFIGS_KEY

CLASSES = {  # the official pipeline for each task
    "text": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "upscaling": "StableDiffusionUpscalePipeline",
}
XL_CLASSES = {"text": "StableDiffusionXLPipeline", "inpainting": "StableDiffusionXLInpaintPipeline"}
REFINER_CLASS = "StableDiffusionXLImg2ImgPipeline"


def save_folder(sd: StableDiffusion, folder: Path, dtype: torch.dtype | None, overwrite: bool) -> None:
    """Write a model folder in diffusers layout. Raises OutputError before anything is written."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose the name of a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{folder} is not empty; choose another folder, or pass overwrite=True.")
    texts = text_components(sd)
    networks: dict[str, tuple[nn.Module, dict[str, object], dict[str, str]]] = {
        "unet": (sd.unet, official_configs.unet_json(sd.unet.config), diffusers.unet(sd.unet.config)),
        "vae": (sd.vae, official_configs.vae_json(sd.vae.config), diffusers.vae(sd.vae.config)),
    }
    for suffix, (_, encoder) in texts.items():
        config = encoder.config
        networks[f"text_encoder{suffix}"] = encoder, official_configs.text_json(config), diffusers.text_encoder(config)
    for name, (network, config_json, modules) in networks.items():
        save_network(network, config_json, modules, folder / name, dtype, overwrite)
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(sd.scheduler.to_config(), folder / "scheduler" / "scheduler_config.json", overwrite)
    for suffix, (tokenizer, _) in texts.items():
        tokenizer.save(folder / f"tokenizer{suffix}")
    index = _index(sd)
    if sd.task == "upscaling":
        (folder / LOW_RES_SCHEDULER).mkdir(exist_ok=True)
        write_json(DDPM(sd.low_res).to_config(), folder / LOW_RES_SCHEDULER / "scheduler_config.json", overwrite)
    write_json(asdict(sd.defaults), folder / DEFAULTS, overwrite)
    write_json(index, folder / "model_index.json", overwrite)  # last: what has one is complete


def save_network(
    network: nn.Module,
    config_json: dict[str, object],
    modules: dict[str, str],
    folder: Path,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write the weights and the config of one network, named by {our module: their module}. Raises OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    tensors = _stored(expand(modules, state), state, dtype)
    save_safetensors(tensors, folder / f"{stem}.safetensors", {"format": "pt"}, overwrite)
    write_json(config_json, folder / "config.json", overwrite)


def text_components(sd: StableDiffusion) -> dict[str, TextPart]:
    """The text encoders by the suffix of their official names: "", SDXL's second and the refiner's only one "_2"."""
    parts = sd.text_parts
    return dict(zip(("", "_2") if len(parts) == 2 or not sd.is_xl else ("_2",), parts, strict=False))


def _index(sd: StableDiffusion) -> dict[str, object]:
    """model_index.json: the official pipeline and the classes of its components."""
    index: dict[str, object] = {
        "_diffusers_version": "0.42.1",  # whose layout this is; its inpainting pipeline does not load without
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", type(sd.scheduler).official_name],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    texts = text_components(sd)
    for suffix in ("", "_2") if sd.is_xl else ("",):
        there = suffix in texts
        projected = there and texts[suffix].encoder.config.projection_width is not None
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        index[f"text_encoder{suffix}"] = ["transformers", kind] if there else [None, None]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"] if there else [None, None]
    if sd.is_xl:
        refiner = size_count(sd.text_parts, sd.unet.config) == 5
        index |= {
            "_class_name": REFINER_CLASS if refiner else XL_CLASSES[sd.task],
            "force_zeros_for_empty_prompt": sd.defaults.zero_empty_prompt,
            "image_encoder": [None, None],
            **({"requires_aesthetics_score": True} if refiner else {}),
        }
        return index
    index |= {"_class_name": CLASSES[sd.task], "requires_safety_checker": False, "safety_checker": [None, None]}
    if sd.task == "depth":
        index["depth_estimator"] = [None, None]
    if sd.task == "upscaling":
        index |= {LOW_RES_SCHEDULER: ["diffusers", DDPM.official_name], "max_noise_level": 350}
    return index


def save_ldm(sd: StableDiffusion, path: Path, dtype: torch.dtype | None, overwrite: bool) -> None:
    """Write one file in the original layout; what its shapes cannot tell goes into its metadata.

    The text encoder is CLIP's or, with erf GELU, OpenCLIP's. The last layer of OpenCLIP, which SD 2.x never uses and
    minisd therefore does not have, is left out.
    """
    check_target(path, overwrite)
    unet, vae = (network.state_dict() for network in (sd.unet, sd.vae))
    tensors = {
        ldm.UNET + name: tensor for name, tensor in _stored(expand(ldm.unet(sd.unet.config), unet), unet, dtype).items()
    }
    vae_places = ldm.vae(sd.vae.config, list(vae))
    tensors |= {ldm.VAE + name: tensor for name, tensor in _stored(vae_places, vae, dtype).items()}
    configs = {
        "unet": official_configs.unet_json(sd.unet.config),
        "vae": official_configs.vae_json(sd.vae.config),
        "scheduler": sd.scheduler.to_config(),
        LOW_RES_SCHEDULER: DDPM(sd.low_res).to_config(),
        "defaults": asdict(sd.defaults),
    }
    for i, (suffix, (_, encoder)) in enumerate(text_components(sd).items()):
        text, is_openclip = encoder.state_dict(), encoder.config.activation == "gelu"
        clip_prefix, openclip_prefix = ldm.text_prefixes(i) if sd.is_xl else (ldm.CLIP, ldm.OPENCLIP)
        if is_openclip:
            prefix, places = openclip_prefix, openclip.text_encoder(list(text))
        else:
            prefix, places = clip_prefix, expand(diffusers.text_encoder(encoder.config), text)
        tensors |= {prefix + name: tensor for name, tensor in _stored(places, text, dtype).items()}
        configs[f"text_encoder{suffix}"] = official_configs.text_json(encoder.config)
    save_safetensors(tensors, path, {"format": "pt", CONFIGS_KEY: json.dumps(configs)}, overwrite)


def _stored(places: Mapping[str, Place], state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = write(places, state)
    return {name: (t if dtype is None else t.to(dtype)).contiguous() for name, t in tensors.items()}
