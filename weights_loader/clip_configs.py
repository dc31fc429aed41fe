"""The config.json and preprocessor_config.json of transformers' CLIPModel, in both directions."""

from dataclasses import replace
from typing import Any

from minisd.configs import CLIPImageConfig, CLIPTextConfig
from minisd.errors import MismatchError
from weights_loader.official_configs import Fields, Json, read_fields, text_config, text_json, write_fields

IMAGE_FIELDS: Fields = {
    "hidden_act": ("activation", "quick_gelu"),
    "hidden_size": ("width", 768),
    "image_size": ("image_size", 224),
    "intermediate_size": ("mlp_width", 3072),
    "layer_norm_eps": ("norm_eps", 1e-5),
    "num_attention_heads": ("heads", 12),
    "num_hidden_layers": ("layers", 12),
    "patch_size": ("patch_size", 32),
}


def clip_configs(json: Json) -> tuple[CLIPTextConfig, CLIPImageConfig]:
    """CLIPModel's config.json -> the configs of its text and image encoders. Raises MismatchError."""
    if json.get("model_type") != "clip":
        raise MismatchError(
            f"the config has model_type {json.get('model_type')!r}, expected 'clip' with both encoders."
        )
    # old files have the second key, too; as in transformers, it takes precedence
    text, vision = (json.get(f"{kind}_config_dict") or json.get(f"{kind}_config") or {} for kind in ("text", "vision"))
    projection = json.get("projection_dim", 512)
    fields, channels = read_fields(vision, IMAGE_FIELDS), vision.get("num_channels", 3)
    if fields["activation"] not in ("quick_gelu", "gelu") or channels != 3:
        raise MismatchError(
            f"the config of CLIP's image encoder has hidden_act {fields['activation']!r} and {channels} channels, "
            "expected 'quick_gelu' or 'gelu' and 3; minisd does not have such a network."
        )
    image = CLIPImageConfig(projection_width=projection, **fields)
    return replace(text_config(text), projection_width=projection), image


def clip_json(text: CLIPTextConfig, image: CLIPImageConfig) -> dict[str, Any]:
    """The inverse of clip_configs."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": image.projection_width,
        "text_config": text_json(text),
        "vision_config": {
            "attention_dropout": 0.0,
            "model_type": "clip_vision_model",
            "num_channels": 3,
            "projection_dim": image.projection_width,
            **write_fields(image, IMAGE_FIELDS),
        },
    }


def with_normalisation(config: CLIPImageConfig, json: Json) -> CLIPImageConfig:
    """The config with the mean and deviation of each colour channel in a preprocessor_config.json.

    Missing values keep those of the config, which are OpenAI's. Raises MismatchError.
    """
    mean, std = json.get("image_mean", config.mean), json.get("image_std", config.std)
    if not (_is_three_numbers(mean) and _is_three_numbers(std) and all(std) and json.get("do_normalize", True)):
        raise MismatchError(
            f"the preprocessor config has image_mean {mean!r}, image_std {std!r} and do_normalize "
            f"{json.get('do_normalize', True)!r}, expected three numbers each, no deviation of 0, and True."
        )
    return replace(config, mean=tuple(mean), std=tuple(std))


def preprocessor_json(config: CLIPImageConfig) -> dict[str, Any]:
    """The settings with which transformers' CLIPImageProcessor prepares images as minisd's CLIP does."""
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


def _is_three_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
