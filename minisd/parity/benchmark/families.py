"""The model families of `minisd bench`: the sizes of their networks."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from minisd.configs import (
    SD1_TEXT,
    SD1_UNET,
    SD1_VAE,
    SD2_TEXT,
    SD2_UNET,
    SDXL_UNET,
    SDXL_VAE,
    TAESD,
    CLIPTextConfig,
    PreviewDecoderConfig,
    UNetConfig,
    VAEConfig,
)
from minisd.models import VAE, CLIPTextTransformer, PreviewDecoder, UNet
from weights_loader.model_folder import ModelFolder
from weights_loader.official_configs import text_config, unet_config, vae_config
from weights_loader.preview_configs import preview_config
from weights_loader.sources import EMBEDDED, resolve

PIXELS_PER_LATENT = 8
NETWORKS: dict[str, type[nn.Module]] = {"text_encoder": CLIPTextTransformer, "unet": UNet, "vae": VAE}
COMPONENTS = NETWORKS | {"preview": PreviewDecoder}  # with the network that no image needs


@dataclass(frozen=True)
class FamilyConfigs:
    """The sizes of the networks of one model family."""

    text_encoder: CLIPTextConfig
    unet: UNetConfig
    vae: VAEConfig
    preview: PreviewDecoderConfig = TAESD

    @property
    def size(self) -> int:
        """The side of the images that the family was trained with, in pixels."""
        return PIXELS_PER_LATENT * min(self.unet.cells)

    @property
    def is_xl(self) -> bool:
        """Whether this is SDXL, of which `minisd bench` has one of two text encoders, so that it cannot draw."""
        return self.unet.pooled_width is not None


def _embedded() -> FamilyConfigs:
    folder = ModelFolder(resolve(EMBEDDED))
    text, unet, vae, preview = (folder.json(name, "config.json") for name in COMPONENTS)
    return FamilyConfigs(text_config(text), unet_config(unet), vae_config(vae), preview_config(preview))


FAMILIES = {
    EMBEDDED: _embedded(),
    "sd15": FamilyConfigs(SD1_TEXT, SD1_UNET, SD1_VAE),
    "sd21": FamilyConfigs(SD2_TEXT, replace(SD2_UNET, sample_size=96), SD1_VAE),
    "sdxl": FamilyConfigs(SD1_TEXT, SDXL_UNET, SDXL_VAE),
}


def tiny(configs: FamilyConfigs) -> FamilyConfigs:
    """The same family in sizes that take milliseconds."""
    unet: dict[str, Any] = {"depths": (1, 0)}
    if configs.is_xl:
        unet = {"depths": (0, 2), "middle_depth": 2}
    unet |= {"channels": (32, 64), "heads": (2, 4), "only_cross_attention": (False, False), "layers_per_block": 1}
    return FamilyConfigs(
        replace(configs.text_encoder, vocab_size=1000, width=32, layers=2, heads=2, mlp_width=64),
        replace(configs.unet, **unet, sample_size=8, context_width=32, norm_groups=8),
        replace(configs.vae, channels=(16, 32, 32, 32), layers_per_block=1, norm_groups=8),
        replace(configs.preview, width=16, blocks_per_level=(1, 1, 1, 2)),
    )
