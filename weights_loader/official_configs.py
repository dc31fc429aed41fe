"""The config.json of the UNet, the VAE and the text encoder, in both directions: official keys <-> our dataclasses.

Missing keys have the official default. Every key of the official classes is read, must have the one value that minisd's
network implements (*_MUST_BE), or has no effect on a trained network (*_NEUTRAL). Other keys are ignored.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from minisd._internal.config_fields import FieldError
from minisd._internal.messages import shown
from minisd.configs import CLIP_VOCABULARY, CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import MismatchError

Json = Mapping[str, Any]
Fields = Mapping[str, tuple[str, Any]]  # {official key: (our field, official default)}, for values stored as they are
Config = TypeVar("Config")

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
    "encoder_hid_dim_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "reverse_transformer_layers_per_block": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1,
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "attention_type": "default",
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
UNET_NEUTRAL = ("dropout", "addition_embed_type_num_heads")
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
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}  # of the VAE
VAE_FIELDS: Fields = {
    "force_upcast": ("force_upcast", False),
    "in_channels": ("in_channels", 3),
    "latent_channels": ("latent_channels", 4),
    "layers_per_block": ("layers_per_block", 2),
    "norm_num_groups": ("norm_groups", 32),
    "sample_size": ("sample_size", 512),
    "scaling_factor": ("scaling_factor", 0.18215),
}
TEXT_NEUTRAL = ("attention_dropout", "initializer_range", "initializer_factor", "pad_token_id", "bos_token_id")
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


def make_config(kind: type[Config], source: str, values: Mapping[str, Any], keys: Mapping[str, str]) -> Config:
    """A config of ours from its fields' values. Raises MismatchError, with the official key of the wrong value.

    source: where the values are from, in the message. keys: {our field: official key}, where they differ.
    """
    try:
        return kind(**values)
    except FieldError as error:
        key = keys.get(error.field, error.field)
        raise MismatchError(f"{source} has {key} {error.problem}; all files must be of one model.") from None


def official_keys(fields: Fields) -> dict[str, str]:
    return {ours: key for key, (ours, _) in fields.items()}


UNET_KEYS = {
    **official_keys(UNET_FIELDS),
    "channels": "block_out_channels",
    "depths": "transformer_layers_per_block",
    "middle_depth": "transformer_layers_per_block",
    "heads": "attention_head_dim",
    "class_count": "num_class_embeds",
    "pooled_width": "projection_class_embeddings_input_dim",
    "guidance_width": "time_cond_proj_dim",
    "size_embedding_width": "addition_time_embed_dim",
}


def unet_config(json: Json) -> UNetConfig:
    """UNet2DConditionModel's config.json -> ours. Raises MismatchError."""
    require(json, UNET_MUST_BE, "unet")
    channels = tuple_of(json, "block_out_channels", (320, 640, 1280, 1280), "unet")
    levels = len(channels)
    down = tuple_of(json, "down_block_types", (CROSS_DOWN,) * 3 + (PLAIN_DOWN,), "unet")
    up = tuple_of(json, "up_block_types", (PLAIN_UP,) + (CROSS_UP,) * 3, "unet")
    mirrored = tuple({CROSS_DOWN: CROSS_UP, PLAIN_DOWN: PLAIN_UP}.get(str(name), "?") for name in reversed(down))
    if len(down) != levels or up != mirrored:
        raise MismatchError(
            f"the unet config has blocks {shown(list(down))} and {shown(list(up))}, expected {levels} of {CROSS_DOWN} "
            f"or {PLAIN_DOWN} and their mirror image; it is not a UNet of Stable Diffusion."
        )
    # the number of heads despite its name
    heads_key = "attention_head_dim" if json.get("num_attention_heads") is None else "num_attention_heads"
    depth = _per_level(json, "transformer_layers_per_block", 1, levels)
    only_cross = json.get("only_cross_attention", False)
    middle_only_cross = json.get("mid_block_only_cross_attention")
    if middle_only_cross or (middle_only_cross is None and only_cross is True):
        raise MismatchError(
            "the unet config has cross-attention alone in its middle block, expected "
            "mid_block_only_cross_attention False; minisd does not have such a network."
        )
    pooled = json.get("projection_class_embeddings_input_dim")
    if (kind := json.get("addition_embed_type")) not in (None, "text_time") or (kind is None) != (pooled is None):
        raise MismatchError(
            f"the unet config has addition_embed_type {shown(kind)} with projection_class_embeddings_input_dim "
            f"{shown(pooled)}, expected 'text_time' with a width, or null for both; minisd has no other embedding."
        )
    size = json.get("sample_size")
    values = {
        "channels": channels,
        "depths": tuple(d if name == CROSS_DOWN else 0 for name, d in zip(down, depth, strict=True)),
        "middle_depth": depth[-1],
        "heads": _per_level(json, heads_key, 8, levels),
        "sample_size": 64 if size is None else tuple(size) if isinstance(size, list) else size,
        "upcast_attention": _or_default(json, "upcast_attention", False),
        "only_cross_attention": _per_level(json, "only_cross_attention", False, levels),
        "class_count": json.get("num_class_embeds"),
        "pooled_width": pooled,
        "guidance_width": json.get("time_cond_proj_dim"),
        "size_embedding_width": _or_default(json, "addition_time_embed_dim", 256),
        **read_fields(json, UNET_FIELDS),
    }
    return make_config(UNetConfig, "the unet config", values, {**UNET_KEYS, "heads": heads_key})


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
        "sample_size": list(config.cells) if isinstance(config.sample_size, tuple) else config.sample_size,
        "up_block_types": [CROSS_UP if name == CROSS_DOWN else PLAIN_UP for name in reversed(down)],
        "upcast_attention": config.upcast_attention,
        **write_fields(config, UNET_FIELDS),
    }
    depths = [*config.depths[:-1], config.middle_depth]
    if any(depth > 1 for depth in depths):
        json["transformer_layers_per_block"] = [max(depth, 1) for depth in depths]
    if any(config.only_cross_attention):
        json["only_cross_attention"] = list(config.only_cross_attention)
    optional = {"num_class_embeds": config.class_count, "time_cond_proj_dim": config.guidance_width}
    json |= {key: value for key, value in optional.items() if value is not None}
    if config.pooled_width is not None:
        json["addition_embed_type"] = "text_time"
        json["addition_time_embed_dim"] = config.size_embedding_width
        json["projection_class_embeddings_input_dim"] = config.pooled_width
    return json


def vae_config(json: Json) -> VAEConfig:
    """AutoencoderKL's config.json -> ours. Raises MismatchError."""
    channels = tuple_of(json, "block_out_channels", (128, 256, 512, 512), "vae")
    blocks = {key: [block] * len(channels) for key, block in BLOCKS.items()}
    require(json, {**VAE_MUST_BE, **blocks, "out_channels": json.get("in_channels", 3)}, "vae")
    values = {"channels": channels, **read_fields(json, VAE_FIELDS)}
    for name in ("latents_mean", "latents_std"):
        values[name] = None if json.get(name) is None else tuple_of(json, name, (), "vae")
    if isinstance(values["sample_size"], list) and values["sample_size"]:
        values["sample_size"] = values["sample_size"][0]  # as the reference does
    return make_config(
        VAEConfig, "the vae config", values, {**official_keys(VAE_FIELDS), "channels": "block_out_channels"}
    )


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """The inverse of vae_config."""
    statistics = {name: getattr(config, name) for name in ("latents_mean", "latents_std")}
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "out_channels": config.in_channels,
        **{key: [block] * len(config.channels) for key, block in BLOCKS.items()},
        **write_fields(config, VAE_FIELDS),
        **{name: list(values) for name, values in statistics.items() if values is not None},
    }


def text_config(json: Json) -> CLIPTextConfig:
    """CLIPTextModel's config.json -> ours. The end token 2 of official files is wrong and ignored."""
    fields, end = read_fields(json, TEXT_FIELDS), json.get("eos_token_id")
    classes = json.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise MismatchError(f"the text encoder config has architectures {shown(classes)}, expected a list of names.")
    if end is not None and type(end) is not int:
        raise MismatchError(f"the text encoder config has eos_token_id {shown(end)}, expected a whole number.")
    projected = "CLIPTextModelWithProjection" in (classes or ())
    vocab_size = fields["vocab_size"]
    is_end_id_valid = type(vocab_size) is int and end is not None and 2 < end < vocab_size - 1
    values = {
        "projection_width": _or_default(json, "projection_dim", 512) if projected else None,
        "end_id": end if is_end_id_valid and end != CLIP_VOCABULARY - 1 else None,
        **fields,
    }
    keys = {**official_keys(TEXT_FIELDS), "projection_width": "projection_dim"}
    return make_config(CLIPTextConfig, "the text encoder config", values, keys)


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
        got = json.get(key, value)
        if (list(got) if isinstance(got, tuple) else got) != value:
            raise MismatchError(
                f"the {component} config has {key} {shown(json[key])}, expected {shown(value)}; "
                "minisd does not have such a network."
            )


def tuple_of(json: Json, key: str, default: tuple, component: str) -> tuple:
    """A list of the config, with one entry for each level. Raises MismatchError."""
    value = json.get(key, default)
    if not isinstance(value, list | tuple) or not value:
        raise MismatchError(f"the {component} config has {key} {shown(value)}, expected a list.")
    return tuple(value)


def _or_default(json: Json, key: str, default: Any) -> Any:
    """The value of a key, where null means the default."""
    return default if json.get(key) is None else json[key]


def _per_level(json: Json, key: str, default: Any, levels: int) -> tuple:
    """A list with a value for each level, or one value for all."""
    value = _or_default(json, key, default)
    if not isinstance(value, list | tuple):
        return (value,) * levels
    if len(value) != levels:
        raise MismatchError(f"the unet config has {key} {shown(value)}, expected {levels} values, one for each level.")
    return tuple(value)
