"""Which parts of a pipeline LoRAs change, and what a pipeline is called."""

from torch import nn

from minisd.pipeline import StableDiffusion
from weights_loader.saving import text_components

# Which family a width of text vectors means: what the UNet reads.
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}


def networks(sd: StableDiffusion) -> dict[str, nn.Module]:
    """The networks that LoRAs change, by the names that files give them."""
    texts = {f"text_encoder{suffix}": part.encoder for suffix, part in text_components(sd).items()}
    return {"unet": sd.unet, **texts}


def family_of_width(width: int) -> str:
    """What a model is called whose UNet reads text vectors of this width."""
    return FAMILIES.get(width, f"models with text vectors of {width}")
