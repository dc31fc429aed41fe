"""Every size and option of the components, as frozen dataclasses; presets by dataclasses.replace.

Levels are listed from the full resolution down. Values that a preset does not override are those of SD 1.x.
"""

from dataclasses import dataclass, replace

CLIP_VOCABULARY = 49408  # number of ids of every official CLIP text encoder


@dataclass(frozen=True)
class CLIPTextConfig:
    """CLIP text transformer (Radford et al. 2021); the defaults are CLIP ViT-L/14, the text encoder of SD 1.x."""

    vocab_size: int = CLIP_VOCABULARY
    max_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"  # "gelu" (erf) for OpenCLIP
    norm_eps: float = 1e-5
    projection_width: int | None = None  # of the pooled text vector; None: no projection in the checkpoint
    end_id: int | None = None  # of the end token; None: the last id of the vocabulary without added words

    @property
    def end_token(self) -> int:
        """The id of the end token; the pooled text is read at its first position."""
        return min(self.vocab_size, CLIP_VOCABULARY) - 1 if self.end_id is None else self.end_id


@dataclass(frozen=True)
class CLIPImageConfig:
    """CLIP vision transformer (Radford et al. 2021); the defaults are CLIP ViT-L/14, the partner of SD 1.x's text."""

    image_size: int = 224  # pixels along one side
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    activation: str = "quick_gelu"  # "gelu" (erf) for OpenCLIP
    norm_eps: float = 1e-5
    projection_width: int = 768  # of the space that images and texts share
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # of red, green, blue in [0, 1] over OpenAI's data
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class VAEConfig:
    """KL autoencoder (Rombach et al. 2022); the defaults are kl-f8 of SD 1.x and 2.x."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2  # the decoder has one more
    latent_channels: int = 4
    in_channels: int = 3
    norm_groups: int = 32
    scaling_factor: float = 0.18215  # brings the latents to unit variance; applied in the pipeline only
    sample_size: int = 512
    force_upcast: bool = False  # float16 overflows in the decoder of SDXL

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class UNetConfig:
    """UNet with cross-attention (Rombach et al. 2022); the defaults are SD 1.x.

    `heads` is the number of attention heads per level: official configs give it under the misleading key
    `attention_head_dim`. `depths` is the number of transformer blocks after each residual block, 0 for none.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    depths: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    layers_per_block: int = 2  # the up blocks have one more
    context_width: int = 768  # 0: no text; attention is only self-attention (Ho et al. 2020)
    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64  # latent cells along one side, as trained
    norm_groups: int = 32
    linear_projection: bool = False  # into and out of the transformers: Linear (SD 2) or 1x1 convolution (SD 1)
    upcast_attention: bool = False  # queries times keys in float32 in any dtype (SD 2.1 768)
    only_cross_attention: tuple[bool, ...] = (False, False, False, False)  # levels whose first attention reads text
    class_count: int | None = None  # noise levels of the x4 upscaler, embedded and added to the time
    pooled_width: int | None = None  # SDXL: width of the pooled text and size vector, embedded and added likewise
    size_embedding_width: int = 256  # SDXL: sinusoid width of each of the size numbers in that vector
    original_ddpm: bool = False  # small differences of the first networks: norms, time sinusoids, padding

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
    def time_width(self) -> int:
        """Width of the time embedding after its MLP."""
        return 4 * self.channels[0]

    @property
    def norm_eps(self) -> float:
        """Epsilon of the norms in the residual blocks."""
        return 1e-6 if self.original_ddpm else 1e-5


SD1_TEXT = CLIPTextConfig()
SD2_TEXT = replace(SD1_TEXT, width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu")
SD1_VAE = VAEConfig()
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
