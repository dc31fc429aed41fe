"""CLIP in small, with random weights: the reference implementation's, and ours with the same weights."""

from typing import Any

import torch
from support.small import TEXTS, InMemory, randomise
from torch import nn

from minisd.models import CLIP
from weights_loader.build import build
from weights_loader.clip_configs import clip_configs
from weights_loader.names import clip as names

# text (of TEXTS), width of the shared space, arguments of CLIPVisionConfig
CLIPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "leftover pixels": (
        "sd1",
        40,
        {
            "image_size": 31,
            "patch_size": 8,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 100,
        },
    ),
    "gelu": (
        "sd2",
        24,
        {
            "image_size": 32,
            "patch_size": 4,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "intermediate_size": 72,
            "hidden_act": "gelu",
        },
    ),
    "one patch": (
        "wide",
        8,
        {
            "image_size": 16,
            "patch_size": 16,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "layer_norm_eps": 1e-3,
        },
    ),
}


def randomise_clip(clip: Any, seed: int = 0, gain: float = 1.0) -> Any:
    """Fill CLIP, ours or the oracle's, with seeded weights."""
    randomise(nn.ModuleDict(dict(clip.named_children())), seed, gain)
    with torch.no_grad():
        clip.logit_scale.fill_(1.5)
    return clip.eval()


def oracle_clip(shape: str, seed: int = 0, gain: float = 1.0, vocab_size: int = 300) -> Any:
    """CLIPModel of a shape in CLIPS."""
    import transformers

    text, projection, vision = CLIPS[shape]
    text_config = {**TEXTS[text], "vocab_size": vocab_size, "bos_token_id": vocab_size - 2, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text_config, vision_config=vision, projection_dim=projection)
    clip = randomise_clip(transformers.CLIPModel(config), seed, gain)
    with torch.no_grad():
        for parameter in clip.vision_model.pre_layrnorm.parameters():  # which would undo the gain
            parameter.mul_(gain)
    return clip


def clip_like(oracle: Any) -> CLIP:
    """Our CLIP with the config and weights of the oracle's."""
    text, image = clip_configs(oracle.config.to_dict())
    return build(
        lambda: CLIP(text, image),
        lambda parameters: names.tensor_sources(text, image, parameters),
        InMemory(oracle.state_dict()),
        "oracle",
    )
