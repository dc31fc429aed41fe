"""The config.json and preprocessor_config.json of transformers' CLIPModel, in both directions."""

from dataclasses import asdict, replace
from typing import Any

from minisd._internal.messages import shown
from minisd.configs import CLIPImageConfig, CLIPTextConfig
from minisd.errors import MismatchError
from weights_loader.official_configs import (
    Fields,
    Json,
    make_config,
    official_keys,
    read_fields,
    require,
    text_config,
    text_json,
    tuple_of,
    write_fields,
)

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
NORMALISATION = {"mean": "image_mean", "std": "image_std"}  # of colours, {our field: official key}
PREPROCESSOR_MUST_BE = dict.fromkeys(("do_normalize", "do_rescale", "do_resize", "do_center_crop"), True) | {
    "resample": 3,  # bicubic
    "rescale_factor": 1 / 255,
}


def clip_configs(json: Json) -> tuple[CLIPTextConfig, CLIPImageConfig]:
    """CLIPModel's config.json -> the configs of its text and image encoders. Raises MismatchError."""
    if json.get("model_type") != "clip":
        raise MismatchError(
            f"the config has model_type {shown(json.get('model_type'))}, expected 'clip' with both encoders."
        )
    # old files have the second key, too; as in transformers, it takes precedence
    text, vision = (json.get(f"{kind}_config_dict") or json.get(f"{kind}_config") or {} for kind in ("text", "vision"))
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise MismatchError(f"the CLIP config has encoders {shown([text, vision])}, expected two JSON objects.")
    require(vision, {"num_channels": 3}, "image encoder")
    values = {"projection_width": json.get("projection_dim", 512), **read_fields(vision, IMAGE_FIELDS)}
    keys = {**official_keys(IMAGE_FIELDS), "projection_width": "projection_dim"}
    image = make_config(CLIPImageConfig, "the image encoder config", values, keys)
    return replace(text_config(text), projection_width=image.projection_width), image


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

    Missing values keep those of the config, which are OpenAI's. Raises MismatchError, also for images that are
    prepared in another way.
    """
    require(json, PREPROCESSOR_MUST_BE, "preprocessor")
    values = {**asdict(config)}
    for name, key in NORMALISATION.items():
        values[name] = tuple_of(json, key, getattr(config, name), "preprocessor")
    return make_config(CLIPImageConfig, "the preprocessor config", values, NORMALISATION)


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
