"""The config.json of diffusers' AutoencoderTiny, of which minisd has the decoder, in both directions."""

from typing import Any

from minisd._internal.messages import shown
from minisd.configs import PreviewDecoderConfig
from minisd.errors import MismatchError
from weights_loader.official_configs import (
    Fields,
    Json,
    make_config,
    official_keys,
    read_fields,
    require,
    tuple_of,
    write_fields,
)

PREVIEW_MUST_BE = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,  # the decoder reads the UNet's latents
    "shift_factor": 0.0,
}
PREVIEW_FIELDS: Fields = {"latent_channels": ("latent_channels", 4), "out_channels": ("out_channels", 3)}
PREVIEW_KEYS = {
    **official_keys(PREVIEW_FIELDS),
    "width": "decoder_block_out_channels",
    "blocks_per_level": "num_decoder_blocks",
}


def preview_config(json: Json) -> PreviewDecoderConfig:
    """AutoencoderTiny's config.json -> ours. Raises MismatchError."""
    require(json, PREVIEW_MUST_BE, "preview decoder")
    blocks = tuple_of(json, "num_decoder_blocks", (3, 3, 3, 1), "preview decoder")
    widths = tuple_of(json, "decoder_block_out_channels", (64, 64, 64, 64), "preview decoder")
    if len(widths) != len(blocks) or any(width != widths[0] for width in widths):
        raise MismatchError(
            f"the preview decoder config has decoder_block_out_channels {shown(list(widths))}, expected {len(blocks)} "
            "equal numbers, one for each level; minisd does not have such a network."
        )
    values = {"width": widths[0], "blocks_per_level": blocks[::-1], **read_fields(json, PREVIEW_FIELDS)}
    return make_config(PreviewDecoderConfig, "the preview decoder config", values, PREVIEW_KEYS)


def preview_json(config: PreviewDecoderConfig) -> dict[str, Any]:
    """The inverse of preview_config; the sizes of the encoder, which minisd does not have, are those of the decoder."""
    widths, blocks = [config.width] * len(config.blocks_per_level), list(config.blocks_per_level)
    return {
        "_class_name": "AutoencoderTiny",
        "decoder_block_out_channels": widths,
        "encoder_block_out_channels": widths,
        "in_channels": config.out_channels,
        "num_decoder_blocks": blocks[::-1],
        "num_encoder_blocks": blocks,
        **PREVIEW_MUST_BE,
        **write_fields(config, PREVIEW_FIELDS),
    }
