"""The config.json of the UNet, the VAE and the text encoder, in both directions: official keys <-> our dataclasses.

Missing keys get the official default, unknown keys are ignored, and values that need a network which minisd does not
have are refused.
"""

from collections.abc import Mapping
from typing import Any

from minisd.configs import CLIP_VOCABULARY, CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import MismatchError

Json = Mapping[str, Any]
Fields = Mapping[str, tuple[str, Any]]  # {official key: (our field, official default)}, for values stored as they are

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
UNET_MUST_BE = {  # the values that our network implements
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default",
    "dual_cross_attention": False,
    "downsample_padding": 1,
    "encoder_hid_dim": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "center_input_sample": False,
}
UNET_FIELDS: Fields = {
    "cross_attention_dim": ("context_width", 1280),
    "in_channels": ("in_channels", 4),
    "layers_per_block": ("layers_per_block", 2),
    "norm_num_groups": ("norm_groups", 32),
    "out_channels": ("out_channels", 4),
    "use_linear_projection": ("linear_projection", False),
}
VAE_MUST_BE = {
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "shift_factor": None,
}
VAE_FIELDS: Fields = {
    "force_upcast": ("force_upcast", False),
    "in_channels": ("in_channels", 3),
    "latent_channels": ("latent_channels", 4),
    "layers_per_block": ("layers_per_block", 2),
    "norm_num_groups": ("norm_groups", 32),
    "sample_size": ("sample_size", 512),
    "scaling_factor": ("scaling_factor", 0.18215),
}
TEXT_FIELDS: Fields = {
    "hidden_act": ("activation", "quick_gelu"),
    "hidden_size": ("width", 512),
    "intermediate_size": ("mlp_width", 2048),
    "layer_norm_eps": ("norm_eps", 1e-5),
    "max_position_embeddings": ("max_length", 77),
    "num_attention_heads": ("heads", 8),
    "num_hidden_layers": ("layers", 12),
    "vocab_size": ("vocab_size", CLIP_VOCABULARY),
}


def read_fields(json: Json, fields: Fields) -> dict[str, Any]:
    """{our field: its value in the config, or the official default}."""
    return {ours: json.get(key, default) for key, (ours, default) in fields.items()}


def write_fields(config: object, fields: Fields) -> dict[str, Any]:
    """The inverse of read_fields."""
    return {key: getattr(config, ours) for key, (ours, _) in fields.items()}


def unet_config(json: Json) -> UNetConfig:
    """UNet2DConditionModel's config.json -> ours. Raises MismatchError."""
    require(json, UNET_MUST_BE, "unet")
    channels = tuple_of(json, "block_out_channels", (320, 640, 1280, 1280), "unet")
    levels = len(channels)
    down = tuple_of(json, "down_block_types", (CROSS_DOWN,) * 3 + (PLAIN_DOWN,), "unet")
    up = tuple_of(json, "up_block_types", (PLAIN_UP,) + (CROSS_UP,) * 3, "unet")
    mirrored = tuple({CROSS_DOWN: CROSS_UP, PLAIN_DOWN: PLAIN_UP}.get(name, "?") for name in reversed(down))
    if len(down) != levels or up != mirrored:
        raise MismatchError(
            f"the unet config has blocks {list(down)} and {list(up)}, expected {levels} of {CROSS_DOWN} or "
            f"{PLAIN_DOWN} and their mirror image; it is not a UNet of Stable Diffusion."
        )
    heads = json.get("num_attention_heads") or json.get("attention_head_dim", 8)  # the number of heads despite its name
    depth = _per_level(json.get("transformer_layers_per_block", 1), levels)
    if not isinstance(json.get("layers_per_block", 2), int):
        raise MismatchError(f"the unet config has layers_per_block {json['layers_per_block']!r}, expected one number.")
    pooled = None
    if json.get("addition_embed_type") == "text_time":
        pooled = json["projection_class_embeddings_input_dim"]
    elif json.get("addition_embed_type") is not None or json.get("class_embed_type") is not None:
        raise MismatchError(
            "the unet config has an extra embedding that minisd lacks; it is not a UNet of Stable Diffusion."
        )
    return UNetConfig(
        channels=channels,
        depths=tuple(d if name == CROSS_DOWN else 0 for name, d in zip(down, depth, strict=True)),
        middle_depth=depth[-1],
        heads=_per_level(heads, levels),
        sample_size=json.get("sample_size") or 64,
        upcast_attention=bool(json.get("upcast_attention")),
        only_cross_attention=_per_level(json.get("only_cross_attention", False), levels),
        class_count=json.get("num_class_embeds"),
        pooled_width=pooled,
        size_embedding_width=json.get("addition_time_embed_dim") or 256,
        **read_fields(json, UNET_FIELDS),
    )


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """The inverse of unet_config."""
    down = [CROSS_DOWN if depth else PLAIN_DOWN for depth in config.depths]
    json: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": list(config.heads),
        "block_out_channels": list(config.channels),
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "sample_size": config.sample_size,
        "up_block_types": [CROSS_UP if name == CROSS_DOWN else PLAIN_UP for name in reversed(down)],
        "upcast_attention": config.upcast_attention,
        **write_fields(config, UNET_FIELDS),
    }
    depths = [*config.depths[:-1], config.middle_depth]
    if any(depth > 1 for depth in depths):
        json["transformer_layers_per_block"] = [max(depth, 1) for depth in depths]
    if any(config.only_cross_attention):
        json["only_cross_attention"] = list(config.only_cross_attention)
    if config.class_count is not None:
        json["num_class_embeds"] = config.class_count
    if config.pooled_width is not None:
        json["addition_embed_type"] = "text_time"
        json["addition_time_embed_dim"] = config.size_embedding_width
        json["projection_class_embeddings_input_dim"] = config.pooled_width
    return json


def vae_config(json: Json) -> VAEConfig:
    """AutoencoderKL's config.json -> ours. Raises MismatchError."""
    require(json, VAE_MUST_BE, "vae")
    channels = tuple_of(json, "block_out_channels", (128, 256, 512, 512), "vae")
    if set(json.get("down_block_types", [])) - {"DownEncoderBlock2D"}:
        raise MismatchError(
            "the vae config has block types other than DownEncoderBlock2D; it is not a VAE of Stable Diffusion."
        )
    return VAEConfig(channels=channels, **read_fields(json, VAE_FIELDS))


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """The inverse of vae_config."""
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "out_channels": config.in_channels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **write_fields(config, VAE_FIELDS),
    }


def text_config(json: Json) -> CLIPTextConfig:
    """CLIPTextModel's config.json -> ours. The end token 2 of official files is wrong and ignored."""
    fields, end = read_fields(json, TEXT_FIELDS), json.get("eos_token_id")
    if fields["activation"] not in ("quick_gelu", "gelu"):
        raise MismatchError(
            f"the text encoder config has hidden_act {fields['activation']!r}, expected 'quick_gelu' or 'gelu'."
        )
    projected = "CLIPTextModelWithProjection" in (json.get("architectures") or [])
    is_end_id_valid = type(end) is int and 2 < end < fields["vocab_size"] - 1 and end != CLIP_VOCABULARY - 1
    return CLIPTextConfig(
        projection_width=json.get("projection_dim", 512) if projected else None,
        end_id=end if is_end_id_valid else None,
        **fields,
    )


def text_json(config: CLIPTextConfig) -> dict[str, Any]:
    """The inverse of text_config; the start token precedes the end token in a CLIP vocabulary."""
    projected = config.projection_width is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": config.end_token - 1,
        "eos_token_id": config.end_token,
        "model_type": "clip_text_model",
        "pad_token_id": config.end_token,
        "projection_dim": config.projection_width if projected else config.width,
        **write_fields(config, TEXT_FIELDS),
    }


def require(json: Json, must_be: Mapping[str, Any], component: str) -> None:
    """Raise MismatchError for a value that needs another network; missing keys are allowed."""
    for key, value in must_be.items():
        if json.get(key, value) != value:
            raise MismatchError(
                f"the {component} config has {key} {json[key]!r}, expected {value!r}; "
                "minisd does not have such a network."
            )


def tuple_of(json: Json, key: str, default: tuple, component: str) -> tuple:
    """A list of the config, with one entry for each level. Raises MismatchError."""
    value = json.get(key, default)
    if not isinstance(value, list | tuple) or not value:
        raise MismatchError(
            f"the {component} config has {key} {value!r}, expected a list with one entry for each level."
        )
    return tuple(value)


def _per_level(value: Any, levels: int) -> tuple:
    if isinstance(value, list | tuple):
        if len(value) != levels:
            raise MismatchError(f"a config has {list(value)} for {levels} levels, expected a list of {levels} entries.")
        return tuple(value)
    return (value,) * levels
