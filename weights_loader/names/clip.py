"""Names in the layout of transformers' CLIPModel: both encoders, their projections and the scale in one file."""

from collections.abc import Iterable

from minisd.configs import CLIPImageConfig, CLIPTextConfig
from weights_loader.names import TensorSource, diffusers, expand

# Parameters that are not the weight or bias of a module.
BARE = {"logit_scale": "logit_scale", "image_encoder.class_token": "vision_model.embeddings.class_embedding"}


def tensor_sources(text: CLIPTextConfig, image: CLIPImageConfig, parameters: Iterable[str]) -> dict[str, TensorSource]:
    """{our parameter: its source}, for the given parameters of CLIP."""
    modules = {f"text_encoder.{ours}": theirs for ours, theirs in diffusers.text_encoder(text).items()}
    modules |= {f"image_encoder.{ours}": theirs for ours, theirs in image_encoder(image).items()}
    named = [name for name in parameters if name not in BARE]
    return expand(modules, named) | {ours: TensorSource(theirs) for ours, theirs in BARE.items()}


def image_encoder(config: CLIPImageConfig) -> dict[str, str]:
    """{our module: their module} of the image encoder."""
    modules = {
        "patch_embedding": "vision_model.embeddings.patch_embedding",
        "position_embedding": "vision_model.embeddings.position_embedding",
        "pre_norm": "vision_model.pre_layrnorm",  # sic
        "post_norm": "vision_model.post_layernorm",
        "image_projection": "visual_projection",
    }
    for i in range(config.layers):
        modules |= diffusers.under(f"layers.{i}", f"vision_model.encoder.layers.{i}", diffusers.LAYER)
    return modules
