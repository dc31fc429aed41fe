"""Save a pipeline in either official layout, so that other software reads what minisd made."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.errors import OutputError
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDPM
from minisd.writing import check_target, write_json
from weights_loader import official_configs
from weights_loader.folder import DEFAULTS, LOW_RES_SCHEDULER
from weights_loader.names import Place, diffusers, expand, ldm, openclip, write
from weights_loader.single_file import CONFIGS_KEY
from weights_loader.writing import save_safetensors

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}

CLASSES = {  # the official pipeline for each task
    "text": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "upscaling": "StableDiffusionUpscalePipeline",
}


def save_folder(sd: StableDiffusion, folder: Path, dtype: torch.dtype | None, overwrite: bool) -> None:
    """Write a model folder in diffusers layout. Raises OutputError before anything is written."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose the name of a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{folder} is not empty; choose another folder, or pass overwrite=True.")
    configs = {
        "unet": official_configs.unet_json(sd.unet.config),
        "vae": official_configs.vae_json(sd.vae.config),
        "text_encoder": official_configs.text_json(sd.text_encoder.config),
    }
    modules = {
        "unet": diffusers.unet(sd.unet.config),
        "vae": diffusers.vae(sd.vae.config),
        "text_encoder": diffusers.text_encoder(sd.text_encoder.config),
    }
    networks: dict[str, nn.Module] = {"unet": sd.unet, "vae": sd.vae, "text_encoder": sd.text_encoder}
    for name, network in networks.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        state = network.state_dict()
        tensors = _stored(expand(modules[name], state), state, dtype)
        save_safetensors(tensors, folder / name / WEIGHTS[name], {"format": "pt"}, overwrite)
        write_json(configs[name], folder / name / "config.json", overwrite)
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(sd.scheduler.to_config(), folder / "scheduler" / "scheduler_config.json", overwrite)
    sd.tokenizer.save(folder / "tokenizer")
    index: dict[str, object] = {
        "_class_name": CLASSES[sd.task],
        "_diffusers_version": "0.42.1",  # whose layout this is; its inpainting pipeline does not load without
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", type(sd.scheduler).official_name],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if sd.task == "depth":
        index["depth_estimator"] = [None, None]
    if sd.task == "upscaling":
        (folder / LOW_RES_SCHEDULER).mkdir(exist_ok=True)
        write_json(DDPM(sd.low_res).to_config(), folder / LOW_RES_SCHEDULER / "scheduler_config.json", overwrite)
        index |= {LOW_RES_SCHEDULER: ["diffusers", DDPM.official_name], "max_noise_level": 350}
    write_json(asdict(sd.defaults), folder / DEFAULTS, overwrite)
    write_json(index, folder / "model_index.json", overwrite)  # last: what has one is complete


def save_ldm(sd: StableDiffusion, path: Path, dtype: torch.dtype | None, overwrite: bool) -> None:
    """Write one file in the original layout; what its shapes cannot tell goes into its metadata.

    The text encoder is CLIP's or, with erf GELU, OpenCLIP's. The last layer of OpenCLIP, which SD 2.x never uses and
    minisd therefore does not have, is left out.
    """
    check_target(path, overwrite)
    unet, vae, text = (network.state_dict() for network in (sd.unet, sd.vae, sd.text_encoder))
    tensors = {
        ldm.UNET + name: tensor for name, tensor in _stored(expand(ldm.unet(sd.unet.config), unet), unet, dtype).items()
    }
    vae_places = ldm.vae(sd.vae.config, list(vae))
    tensors |= {ldm.VAE + name: tensor for name, tensor in _stored(vae_places, vae, dtype).items()}
    if sd.text_encoder.config.activation == "gelu":
        prefix, text_places = ldm.OPENCLIP, openclip.text_encoder(list(text))
    else:
        prefix, text_places = ldm.CLIP, expand(diffusers.text_encoder(sd.text_encoder.config), text)
    tensors |= {prefix + name: tensor for name, tensor in _stored(text_places, text, dtype).items()}
    configs = {
        "unet": official_configs.unet_json(sd.unet.config),
        "vae": official_configs.vae_json(sd.vae.config),
        "text_encoder": official_configs.text_json(sd.text_encoder.config),
        "scheduler": sd.scheduler.to_config(),
        LOW_RES_SCHEDULER: DDPM(sd.low_res).to_config(),
        "defaults": asdict(sd.defaults),
    }
    save_safetensors(tensors, path, {"format": "pt", CONFIGS_KEY: json.dumps(configs)}, overwrite)


def _stored(places: Mapping[str, Place], state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = write(places, state)
    return {name: (t if dtype is None else t.to(dtype)).contiguous() for name, t in tensors.items()}
