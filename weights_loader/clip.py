"""CLIP in the layout of transformers' CLIPModel: config.json, model.safetensors, preprocessor_config.json, vocabulary.

The vocabulary lies in the folder or, as in the models of minisd, in the folder `tokenizer` beside it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minisd._internal.atomic_files import write_json
from minisd.configs import CLIPImageConfig, CLIPTextConfig
from minisd.errors import MismatchError, OutputError
from minisd.models import CLIP
from minisd.tokenizer import Tokenizer
from weights_loader import official_configs
from weights_loader.build import build
from weights_loader.folder import component_weights, is_position_ids
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.hub.repo_files import MODEL_INDEX, read_json
from weights_loader.names import clip as names
from weights_loader.names import write

INSIDE_A_MODEL = "clip"  # the folder beside unet/, vae/ and text_encoder/
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # of transformers up to 4, and from 5 on


def load_clip_folder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[CLIP, Tokenizer]:
    """CLIP and its tokenizer from its own folder, or from that of a whole model.

    Raises MismatchError, FileFormatError and what reading files raises.
    """
    if (folder / MODEL_INDEX).is_file():
        folder = folder / INSIDE_A_MODEL
    if not (folder / "config.json").is_file():
        raise MismatchError(
            f"{folder} has no config.json, so there is no CLIP; name a folder that transformers' CLIPModel or "
            "weights_loader.save_clip wrote."
        )
    text, image = clip_configs(read_json(folder / "config.json"))
    image = _normalised(image, folder)
    tokenizer = Tokenizer.from_folder(_vocabulary(folder))
    if len(tokenizer) > text.vocab_size:
        raise MismatchError(
            f"{folder}: the tokenizer has {len(tokenizer)} ids, the text half {text.vocab_size}; "
            "take both from one model."
        )
    clip = build(
        lambda: CLIP(text, image),
        lambda parameters: names.places(text, image, parameters),
        component_weights(folder, ""),
        is_position_ids,
        f"{folder}",
        device,
        dtype,
    )
    return clip, tokenizer


def save_clip_folder(
    clip: CLIP, tokenizer: Tokenizer | None, folder: Path, dtype: torch.dtype | None, overwrite: bool
) -> None:
    """Write CLIP's folder; without a tokenizer, it is to be found in `tokenizer` beside it. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose the name of a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{folder} is not empty; choose another folder, or pass overwrite=True.")
    text, image = clip.text_encoder.config, clip.image_encoder.config
    folder.mkdir(parents=True, exist_ok=True)
    state = clip.state_dict()
    stored = write(names.places(text, image, state), state)
    tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in stored.items()}
    save_safetensors(tensors, folder / "model.safetensors", {"format": "pt"}, overwrite)
    if tokenizer is not None:
        tokenizer.save(folder)
    write_json(_preprocessor_json(image), folder / PREPROCESSOR, overwrite)
    write_json(clip_json(text, image), folder / "config.json", overwrite)  # last: what has one is complete


def clip_configs(json: Mapping[str, Any]) -> tuple[CLIPTextConfig, CLIPImageConfig]:
    """CLIPModel's config.json -> ours, of both halves. Raises MismatchError."""
    if json.get("model_type") != "clip":
        raise MismatchError(f"the config is of a {json.get('model_type')!r}, expected 'clip', which has both halves.")
    # as in transformers: where old files have the second key, it counts
    text, vision = (json.get(f"{half}_config_dict") or json.get(f"{half}_config") or {} for half in ("text", "vision"))
    projection = json.get("projection_dim", 512)
    activation, channels = vision.get("hidden_act", "quick_gelu"), vision.get("num_channels", 3)
    if activation not in ("quick_gelu", "gelu") or channels != 3:
        raise MismatchError(
            f"the config of CLIP's image half has hidden_act {activation!r} and {channels} channels, "
            "expected 'quick_gelu' or 'gelu' and 3; minisd has no such network."
        )
    image = CLIPImageConfig(
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 32),
        width=vision.get("hidden_size", 768),
        layers=vision.get("num_hidden_layers", 12),
        heads=vision.get("num_attention_heads", 12),
        mlp_width=vision.get("intermediate_size", 3072),
        activation=activation,
        norm_eps=vision.get("layer_norm_eps", 1e-5),
        projection_width=projection,
    )
    return replace(official_configs.text_config(text), projection_width=projection), image


def clip_json(text: CLIPTextConfig, image: CLIPImageConfig) -> dict[str, Any]:
    """The inverse of clip_configs."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": image.projection_width,
        "text_config": official_configs.text_json(text),
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": image.activation,
            "hidden_size": image.width,
            "image_size": image.image_size,
            "intermediate_size": image.mlp_width,
            "layer_norm_eps": image.norm_eps,
            "model_type": "clip_vision_model",
            "num_attention_heads": image.heads,
            "num_channels": 3,
            "num_hidden_layers": image.layers,
            "patch_size": image.patch_size,
            "projection_dim": image.projection_width,
        },
    }


def _normalised(config: CLIPImageConfig, folder: Path) -> CLIPImageConfig:
    """The config with the folder's mean and deviation of each colour channel; where it gives none, with OpenAI's."""
    json: Any = {}
    if (folder / PREPROCESSOR).is_file():
        json = read_json(folder / PREPROCESSOR)
    elif (folder / PROCESSOR).is_file():
        json = read_json(folder / PROCESSOR).get("image_processor", {})
    mean, std = json.get("image_mean", config.mean), json.get("image_std", config.std)
    if not (_three_numbers(mean) and _three_numbers(std) and all(std) and json.get("do_normalize", True)):
        raise MismatchError(
            f"{folder} normalises pictures by mean {mean!r} and deviation {std!r}, expected three numbers each, "
            "used (do_normalize), and no deviation of 0."
        )
    return replace(config, mean=tuple(mean), std=tuple(std))


def _three_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values)


def _preprocessor_json(config: CLIPImageConfig) -> dict[str, Any]:
    """What transformers' CLIPImageProcessor does with a picture before CLIP sees it."""
    size = config.image_size
    return {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(config.mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(config.std),
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }


def _vocabulary(folder: Path) -> Path:
    """The folder with CLIP's vocabulary."""
    for place in (folder, folder.parent / "tokenizer"):
        if any((place / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            return place
    raise MismatchError(
        f"{folder} has no vocab.json and merges.txt, nor has a folder `tokenizer` beside it; put them into either."
    )
