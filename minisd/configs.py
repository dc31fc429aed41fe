"""Every size and option of the components, as frozen dataclasses; presets by dataclasses.replace.

Levels are listed from the full resolution down. Values that a preset does not override are those of SD 1.x.
Every config raises InputError for values that no network can have, or that do not fit together.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from minisd._internal.config_fields import Layers, Range, Size, check_fields, refuse

Epsilon = Annotated[float, Range(1e-12, 0.1)]
Share = Annotated[float, Range(0, 1)]  # of the brightest value of a pixel
Spread = Annotated[float, Range(1e-3, 1000)]
LEVELS = 10
ACTIVATIONS = ("quick_gelu", "gelu")

CLIP_VOCABULARY = 49408  # number of ids of every official CLIP text encoder


@dataclass(frozen=True)
class CLIPTextConfig:
    """CLIP text transformer (Radford et al. 2021); the defaults are CLIP ViT-L/14, the text encoder of SD 1.x."""

    vocab_size: Annotated[int, Range(1, 1_000_000)] = CLIP_VOCABULARY
    max_length: Annotated[int, Range(2, 65536)] = 77
    width: Size = 768
    layers: Layers = 12
    heads: Size = 12
    mlp_width: Size = 3072
    activation: str = "quick_gelu"  # "gelu" (erf) for OpenCLIP
    norm_eps: Epsilon = 1e-5
    projection_width: Size | None = None  # of the pooled text vector; None: no projection in the checkpoint
    end_id: Annotated[int, Range(0, 1_000_000)] | None = None  # None: the last id of the vocabulary, added words apart

    def __post_init__(self) -> None:
        _check_encoder(self)
        if self.end_id is not None and self.end_id >= self.vocab_size:
            refuse(self, "end_id", f"an id of the vocabulary, below {self.vocab_size}")

    @property
    def end_token(self) -> int:
        """The id of the end token; the pooled text is read at its first position."""
        return min(self.vocab_size, CLIP_VOCABULARY) - 1 if self.end_id is None else self.end_id


@dataclass(frozen=True)
class CLIPImageConfig:
    """CLIP vision transformer (Radford et al. 2021); the defaults are CLIP ViT-L/14, the partner of SD 1.x's text."""

    image_size: Size = 224  # pixels along one side
    patch_size: Size = 14
    width: Size = 1024
    layers: Layers = 24
    heads: Size = 16
    mlp_width: Size = 4096
    activation: str = "quick_gelu"  # "gelu" (erf) for OpenCLIP
    norm_eps: Epsilon = 1e-5
    projection_width: Size = 768  # of the space that images and texts share
    mean: tuple[Share, Share, Share] = (0.48145466, 0.4578275, 0.40821073)  # of red, green, blue over OpenAI's data
    std: tuple[Spread, Spread, Spread] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        _check_encoder(self)
        if self.patch_size > self.image_size:
            refuse(self, "patch_size", f"at most image_size, {self.image_size}")

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class VAEConfig:
    """KL autoencoder (Rombach et al. 2022); the defaults are kl-f8 of SD 1.x and 2.x."""

    channels: tuple[Size, ...] = (128, 256, 512, 512)
    layers_per_block: Layers = 2  # the decoder has one more
    latent_channels: Size = 4
    in_channels: Size = 3
    norm_groups: Size = 32
    scaling_factor: Spread = 0.18215  # brings the latents to unit variance, see VAE.scaled
    sample_size: Size = 512
    force_upcast: bool = False  # float16 overflows in the decoder of SDXL
    latents_mean: tuple[Annotated[float, Range(-1000, 1000)], ...] | None = None  # of each channel of the raw latents
    latents_std: tuple[Spread, ...] | None = None  # both or neither

    def __post_init__(self) -> None:
        check_fields(self)
        _check_levels(self)
        for name, other in (("latents_mean", self.latents_std), ("latents_std", self.latents_mean)):
            values = getattr(self, name)
            if (values is None) != (other is None) or (values is not None and len(values) != self.latent_channels):
                refuse(self, name, f"{self.latent_channels} numbers, one for each latent channel, in mean and std")

    @property
    def blocks(self) -> int:
        """Number of residual blocks."""
        return len(self.channels) * (2 * self.layers_per_block + 1) + 4

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class PreviewDecoderConfig:
    """Decoder of a tiny autoencoder; the defaults are TAESD (Bohan 2023), which decodes latents of SD 1.x and 2.x."""

    width: Size = 64  # the same at every level
    blocks_per_level: tuple[Layers, ...] = (1, 3, 3, 3)
    latent_channels: Size = 4
    out_channels: Size = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.blocks_per_level) > LEVELS:
            refuse(self, "blocks_per_level", f"at most {LEVELS} levels")

    @property
    def blocks(self) -> int:
        """Number of residual blocks."""
        return sum(self.blocks_per_level)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.blocks_per_level) - 1)


@dataclass(frozen=True)
class UNetConfig:
    """UNet with cross-attention (Rombach et al. 2022); the defaults are SD 1.x.

    `heads` is the number of attention heads per level: official configs give it under the misleading key
    `attention_head_dim`. `depths` is the number of transformer blocks after each residual block, 0 for none.
    """

    channels: tuple[Size, ...] = (320, 640, 1280, 1280)
    depths: tuple[Annotated[int, Range(0, 200)], ...] = (1, 1, 1, 0)
    middle_depth: Layers = 1
    heads: tuple[Size, ...] = (8, 8, 8, 8)
    layers_per_block: Layers = 2  # the up blocks have one more
    context_width: Annotated[int, Range(0, 65536)] = 768  # 0: no text, only self-attention (Ho et al. 2020)
    in_channels: Size = 4
    out_channels: Size = 4
    sample_size: Size | tuple[Size, Size] = 64  # latent cells along one side, or (height, width), as trained
    norm_groups: Size = 32
    linear_projection: bool = False  # into and out of the transformers: Linear (SD 2) or 1x1 convolution (SD 1)
    upcast_attention: bool = False  # queries times keys in float32 in any dtype (SD 2.1 768)
    only_cross_attention: tuple[bool, ...] = (False, False, False, False)  # levels whose first attention reads text
    class_count: Size | None = None  # noise levels of the x4 upscaler, embedded and added to the time
    pooled_width: Size | None = None  # SDXL: width of the pooled text and size vector, embedded and added likewise
    size_embedding_width: Size = 256  # SDXL: sinusoid width of each of the size numbers in that vector
    guidance_width: Size | None = None  # distilled guidance: sinusoid width of its scale, added to those of the time
    original_ddpm: bool = False  # small differences of the first networks: norms, time sinusoids, padding

    def __post_init__(self) -> None:
        check_fields(self)
        levels = len(self.channels)
        for name in ("depths", "heads", "only_cross_attention"):
            if len(getattr(self, name)) != levels:
                refuse(self, name, f"{levels} values, one for each level")
        _check_levels(self)
        if self.channels[0] % 2 or self.channels[0] < 4:
            refuse(self, "channels", "an even first width from 4 up, for sines and cosines of the timestep")
        if self.size_embedding_width % 2:
            refuse(self, "size_embedding_width", "an even number")
        if self.guidance_width is not None and (self.guidance_width % 2 or self.guidance_width < 4):
            refuse(self, "guidance_width", "an even number from 4 up, or none")
        has_attention = [depth > 0 for depth in self.depths[:-1]] + [True]  # the middle has the heads of the last level
        for width, heads, attends in zip(self.channels, self.heads, has_attention, strict=True):
            if attends and width % heads:
                refuse(self, "heads", f"numbers that divide the widths {self.channels}")

    @property
    def family(self) -> str:
        """The official family that these sizes belong to, such as "SD 1.x inpainting"; "own" for any other sizes."""
        if self.pooled_width is not None:
            if self.context_width == 1280:
                return "SDXL refiner"
            return "SDXL" + {4: "", 9: " inpainting"}.get(self.in_channels, f" ({self.in_channels} channels)")
        if self.class_count is not None:
            return "x4 upscaler"
        base = {768: "SD 1.x", 1024: "SD 2.x"}.get(self.context_width, "own")
        if self.channels != (320, 640, 1280, 1280):
            base = "own"
        return base + {4: "", 9: " inpainting", 5: " depth"}.get(self.in_channels, f" ({self.in_channels} channels)")

    @property
    def blocks(self) -> int:
        """Number of residual and transformer blocks."""
        per_level = 2 * self.layers_per_block + 1
        return per_level * (len(self.channels) + sum(self.depths)) + 2 + self.middle_depth

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the latents in training."""
        return self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size, self.sample_size)

    @property
    def time_width(self) -> int:
        """Width of the time embedding after its MLP."""
        return 4 * self.channels[0]

    @property
    def norm_eps(self) -> float:
        """Epsilon of the norms in the residual blocks."""
        return 1e-6 if self.original_ddpm else 1e-5


def _check_encoder(config: CLIPTextConfig | CLIPImageConfig) -> None:
    check_fields(config)
    if config.activation not in ACTIVATIONS:
        refuse(config, "activation", "'quick_gelu' or 'gelu'")
    if config.width % config.heads:
        refuse(config, "heads", f"a number that divides the width {config.width}")


def _check_levels(config: VAEConfig | UNetConfig) -> None:
    if len(config.channels) > LEVELS:
        refuse(config, "channels", f"at most {LEVELS} levels")
    if any(width % config.norm_groups for width in config.channels):
        refuse(config, "norm_groups", f"a number that divides the widths {config.channels}")


SD1_TEXT = CLIPTextConfig()
SD2_TEXT = replace(SD1_TEXT, width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu")
SD1_VAE = VAEConfig()
TAESD = PreviewDecoderConfig()
SD1_UNET = UNetConfig()
SD2_UNET = replace(SD1_UNET, heads=(5, 10, 20, 20), context_width=1024, linear_projection=True)
SDXL_VAE = replace(SD1_VAE, scaling_factor=0.13025, sample_size=1024, force_upcast=True)
SDXL_UNET = UNetConfig(
    channels=(320, 640, 1280),
    depths=(0, 2, 10),
    middle_depth=10,
    heads=(5, 10, 20),
    context_width=2048,
    sample_size=128,
    linear_projection=True,
    only_cross_attention=(False, False, False),
    pooled_width=2816,
)
