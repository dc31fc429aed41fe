"""The config.json of UNet2DModel, the UNet without text that models of pixels have, in both directions."""

from typing import Any

from minisd._internal.messages import shown
from minisd.configs import UNetConfig
from minisd.errors import MismatchError
from weights_loader.official_configs import (
    PLAIN_DOWN,
    PLAIN_UP,
    UNET_KEYS,
    Fields,
    Json,
    make_config,
    read_fields,
    require,
    tuple_of,
    write_fields,
)

PIXEL_PIPELINE = "DDPMPipeline"  # in model_index.json: a UNet and a scheduler
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
    "time_embedding_dim": None,
    "num_train_timesteps": None,
}
PIXEL_UNET_FIELDS: Fields = {
    "in_channels": ("in_channels", 3),
    "layers_per_block": ("layers_per_block", 2),
    "norm_num_groups": ("norm_groups", 32),
    "num_class_embeds": ("class_count", None),
    "out_channels": ("out_channels", 3),
}
# The first networks, google/ddpm-*, differ from later ones in all four values.
PLAIN_DDPM = {"flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_eps": 1e-5}
ORIGINAL_DDPM = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}


def pixel_unet_config(json: Json) -> UNetConfig:
    """UNet2DModel's config.json -> ours. Raises MismatchError."""
    require(json, PIXEL_UNET_MUST_BE, "unet")
    channels = tuple_of(json, "block_out_channels", (224, 448, 672, 896), "unet")
    down = tuple_of(json, "down_block_types", (PLAIN_DOWN,) + ("AttnDownBlock2D",) * 3, "unet")
    up = tuple_of(json, "up_block_types", ("AttnUpBlock2D",) * 3 + (PLAIN_UP,), "unet")
    if len(down) != len(channels) or up != tuple(PIXEL_DOWN.get(str(name), "?") for name in reversed(down)):
        raise MismatchError(
            f"the unet config has blocks {shown(list(down))} and {shown(list(up))}, expected {len(channels)} of "
            f"{' or '.join(PIXEL_DOWN)} and their mirror image."
        )
    kind = {key: json.get(key, value) for key, value in PLAIN_DDPM.items()}
    if kind not in (PLAIN_DDPM, ORIGINAL_DDPM):
        raise MismatchError(f"the unet config has {shown(kind)}, expected {PLAIN_DDPM}, or {ORIGINAL_DDPM}.")
    size, head_width = json.get("sample_size"), json.get("attention_head_dim", 8)
    if type(head_width) is not int and head_width is not None:
        raise MismatchError(f"the unet config has attention_head_dim {shown(head_width)}, expected a number or null.")
    values = {
        "channels": channels,
        "depths": tuple(int(name != PLAIN_DOWN) for name in down),
        "heads": tuple(width // head_width if head_width and type(width) is int else 1 for width in channels),
        "context_width": 0,
        "sample_size": 64 if size is None else tuple(size) if isinstance(size, list) else size,
        "only_cross_attention": (False,) * len(channels),
        "original_ddpm": kind == ORIGINAL_DDPM,
        **read_fields(json, PIXEL_UNET_FIELDS),
    }
    return make_config(UNetConfig, "the unet config", values, UNET_KEYS)


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
        "sample_size": config.sample_size,
        "up_block_types": [PIXEL_DOWN[name] for name in reversed(down)],
        **write_fields(config, PIXEL_UNET_FIELDS),
        **(ORIGINAL_DDPM if config.original_ddpm else PLAIN_DDPM),
    }
