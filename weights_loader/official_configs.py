"""The config.json of each component, in both directions: official keys <-> our dataclasses.

Old files lack keys, new ones have many that say nothing about the network: missing ones get the official default,
unknown ones are ignored, and values that would need another network are refused.
"""

from collections.abc import Mapping
from typing import Any

from minisd.configs import CLIP_VOCABULARY, CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import MismatchError

Json = Mapping[str, Any]

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
UNET_MUST_BE = {  # what our network is, by official key; anything else is another network
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
PIXEL_DOWN = {"AttnDownBlock2D": "AttnUpBlock2D", PLAIN_DOWN: PLAIN_UP}
PIXEL_UNET_MUST_BE = {
    "act_fn": "silu",
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default",
    "downsample_type": "conv",
    "upsample_type": "conv",
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "add_attention": True,
    "center_input_sample": False,
    "dropout": 0.0,
}
# What tells the first networks, google/ddpm-*, from later ones: all of it, or nothing.
PLAIN_DDPM = {"flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_eps": 1e-5}
ORIGINAL_DDPM = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}
VAE_MUST_BE = {
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "shift_factor": None,
}


def unet_config(json: Json) -> UNetConfig:
    """UNet2DConditionModel's config.json -> ours, or UNet2DModel's. Raises MismatchError."""
    if json.get("_class_name") == "UNet2DModel":
        return pixel_unet_config(json)
    _require(json, UNET_MUST_BE, "unet")
    channels = _tuple(json, "block_out_channels", (320, 640, 1280, 1280), "unet")
    levels = len(channels)
    down = _tuple(json, "down_block_types", (CROSS_DOWN,) * 3 + (PLAIN_DOWN,), "unet")
    up = _tuple(json, "up_block_types", (PLAIN_UP,) + (CROSS_UP,) * 3, "unet")
    mirrored = tuple({CROSS_DOWN: CROSS_UP, PLAIN_DOWN: PLAIN_UP}.get(name, "?") for name in reversed(down))
    if len(down) != levels or up != mirrored:
        raise MismatchError(
            f"the unet config has blocks {list(down)} and {list(up)}, expected {levels} of {CROSS_DOWN} or "
            f"{PLAIN_DOWN} and their mirror image; this is no Stable Diffusion UNet."
        )
    heads = json.get("num_attention_heads") or json.get("attention_head_dim", 8)  # the second is misnamed
    depth = _per_level(json.get("transformer_layers_per_block", 1), levels)
    layers = json.get("layers_per_block", 2)
    if not isinstance(layers, int):
        raise MismatchError(f"the unet config has layers_per_block {layers!r}, expected one whole number.")
    class_count = json.get("num_class_embeds")
    pooled = None
    if json.get("addition_embed_type") == "text_time":
        pooled = json["projection_class_embeddings_input_dim"]
    elif json.get("addition_embed_type") is not None or json.get("class_embed_type") is not None:
        raise MismatchError("the unet config has an extra embedding that minisd lacks; it is no Stable Diffusion UNet.")
    return UNetConfig(
        channels=channels,
        depths=tuple(d if name == CROSS_DOWN else 0 for name, d in zip(down, depth, strict=True)),
        middle_depth=depth[-1],
        heads=_per_level(heads, levels),
        layers_per_block=layers,
        context_width=json.get("cross_attention_dim", 1280),
        in_channels=json.get("in_channels", 4),
        out_channels=json.get("out_channels", 4),
        sample_size=json.get("sample_size") or 64,
        norm_groups=json.get("norm_num_groups", 32),
        linear_projection=json.get("use_linear_projection", False),
        upcast_attention=bool(json.get("upcast_attention")),
        only_cross_attention=_per_level(json.get("only_cross_attention", False), levels),
        class_count=class_count,
        pooled_width=pooled,
        size_embedding_width=json.get("addition_time_embed_dim") or 256,
    )


def pixel_unet_config(json: Json) -> UNetConfig:
    """UNet2DModel's config.json -> ours: a UNet that reads no text. Raises MismatchError."""
    _require(json, PIXEL_UNET_MUST_BE, "unet")
    channels = _tuple(json, "block_out_channels", (224, 448, 672, 896), "unet")
    down = _tuple(json, "down_block_types", (PLAIN_DOWN,) + ("AttnDownBlock2D",) * 3, "unet")
    up = _tuple(json, "up_block_types", ("AttnUpBlock2D",) * 3 + (PLAIN_UP,), "unet")
    if len(down) != len(channels) or up != tuple(PIXEL_DOWN.get(name, "?") for name in reversed(down)):
        raise MismatchError(
            f"the unet config has blocks {list(down)} and {list(up)}, expected {len(channels)} of "
            f"{' or '.join(PIXEL_DOWN)} and their mirror image."
        )
    kind = {key: json.get(key, value) for key, value in PLAIN_DDPM.items()}
    if kind not in (PLAIN_DDPM, ORIGINAL_DDPM):
        raise MismatchError(f"the unet config has {kind}, expected {PLAIN_DDPM}, or {ORIGINAL_DDPM}.")
    size = json.get("sample_size") or 64
    if not isinstance(size, int):
        raise MismatchError(f"the unet config has sample_size {size!r}, expected one whole number.")
    head_width = json.get("attention_head_dim", 8)
    return UNetConfig(
        channels=channels,
        depths=tuple(int(name != PLAIN_DOWN) for name in down),
        heads=tuple(width // head_width if head_width else 1 for width in channels),
        layers_per_block=json.get("layers_per_block", 2),
        context_width=0,
        in_channels=json.get("in_channels", 3),
        out_channels=json.get("out_channels", 3),
        sample_size=size,
        norm_groups=json.get("norm_num_groups", 32),
        only_cross_attention=(False,) * len(channels),
        class_count=json.get("num_class_embeds"),
        original_ddpm=kind == ORIGINAL_DDPM,
    )


def pixel_unet_json(config: UNetConfig) -> dict[str, Any]:
    """The inverse of pixel_unet_config."""
    down = ["AttnDownBlock2D" if depth else PLAIN_DOWN for depth in config.depths]
    return {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "add_attention": True,
        "attention_head_dim": None if set(config.heads) == {1} else config.channels[-1] // config.heads[-1],
        "block_out_channels": list(config.channels),
        "down_block_types": down,
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": config.class_count,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "up_block_types": [PIXEL_DOWN[name] for name in reversed(down)],
        **(ORIGINAL_DDPM if config.original_ddpm else PLAIN_DDPM),
    }


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """The inverse of unet_config."""
    if config.context_width == 0:
        return pixel_unet_json(config)
    down = [CROSS_DOWN if depth else PLAIN_DOWN for depth in config.depths]
    json: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": list(config.heads),
        "block_out_channels": list(config.channels),
        "cross_attention_dim": config.context_width,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "norm_eps": 1e-5,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "up_block_types": [CROSS_UP if name == CROSS_DOWN else PLAIN_UP for name in reversed(down)],
        "upcast_attention": config.upcast_attention,
        "use_linear_projection": config.linear_projection,
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
    _require(json, VAE_MUST_BE, "vae")
    channels = _tuple(json, "block_out_channels", (128, 256, 512, 512), "vae")
    if set(json.get("down_block_types", [])) - {"DownEncoderBlock2D"}:
        raise MismatchError("the vae config has block types other than DownEncoderBlock2D; it is no KL autoencoder.")
    return VAEConfig(
        channels=channels,
        layers_per_block=json.get("layers_per_block", 2),
        latent_channels=json.get("latent_channels", 4),
        in_channels=json.get("in_channels", 3),
        norm_groups=json.get("norm_num_groups", 32),
        scaling_factor=json.get("scaling_factor", 0.18215),
        sample_size=json.get("sample_size", 512),
        force_upcast=json.get("force_upcast", False),
    )


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """The inverse of vae_config."""
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": config.force_upcast,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.in_channels,
        "sample_size": config.sample_size,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(json: Json) -> CLIPTextConfig:
    """CLIPTextModel's config.json -> ours. Official files say 2 for the end token, which is wrong."""
    activation = json.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise MismatchError(f"the text encoder config has hidden_act {activation!r}, expected 'quick_gelu' or 'gelu'.")
    projected = "CLIPTextModelWithProjection" in (json.get("architectures") or [])
    vocab_size, end = json.get("vocab_size", CLIP_VOCABULARY), json.get("eos_token_id")
    told = type(end) is int and 2 < end < vocab_size - 1 and end != CLIP_VOCABULARY - 1
    return CLIPTextConfig(
        vocab_size=vocab_size,
        max_length=json.get("max_position_embeddings", 77),
        width=json.get("hidden_size", 512),
        layers=json.get("num_hidden_layers", 12),
        heads=json.get("num_attention_heads", 8),
        mlp_width=json.get("intermediate_size", 2048),
        activation=activation,
        norm_eps=json.get("layer_norm_eps", 1e-5),
        projection_width=json.get("projection_dim", 512) if projected else None,
        end_id=end if told else None,
    )


def text_json(config: CLIPTextConfig) -> dict[str, Any]:
    """The inverse of text_config; start and end are two ids of a CLIP vocabulary in a row."""
    projected = config.projection_width is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": config.end_token - 1,
        "eos_token_id": config.end_token,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": config.end_token,
        "projection_dim": config.projection_width if projected else config.width,
        "vocab_size": config.vocab_size,
    }


def _require(json: Json, must_be: Mapping[str, Any], component: str) -> None:
    for key, value in must_be.items():
        if json.get(key, value) != value:
            raise MismatchError(
                f"the {component} config has {key} {json[key]!r}, expected {value!r}; "
                "this is not a network of Stable Diffusion."
            )


def _tuple(json: Json, key: str, default: tuple, component: str) -> tuple:
    value = json.get(key, default)
    if not isinstance(value, list | tuple) or not value:
        raise MismatchError(f"the {component} config has {key} {value!r}, expected a list with an entry a level.")
    return tuple(value)


def _per_level(value: Any, levels: int) -> tuple:
    if isinstance(value, list | tuple):
        if len(value) != levels:
            raise MismatchError(f"a config has the list {list(value)} where {levels} levels need {levels} entries.")
        return tuple(value)
    return (value,) * levels
