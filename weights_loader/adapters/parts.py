"""Which parts of a pipeline adapters change. A pipeline with more networks needs their names here, nothing else."""

from torch import nn

from minisd.adapters import TextPart
from minisd.pipeline import StableDiffusion

NETWORKS = ("unet", "text_encoder", "text_encoder_2")  # the last of SDXL only
TEXT_PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))

# Which family a width of text vectors means: what the UNet reads.
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}


def networks(sd: StableDiffusion) -> dict[str, nn.Module]:
    """The networks that LoRAs change, by the names that files give them."""
    parts = vars(sd)
    return {name: parts[name] for name in NETWORKS if parts.get(name) is not None}


def text_parts(sd: StableDiffusion) -> list[TextPart]:
    """The text encoders, each with its tokenizer."""
    parts = vars(sd)
    return [TextPart(parts[tokens], parts[encoder]) for tokens, encoder in TEXT_PARTS if parts.get(encoder) is not None]


def family_of_width(width: int) -> str:
    """What a model is called whose UNet reads text vectors of this width."""
    return FAMILIES.get(width, f"models with text vectors of {width}")
