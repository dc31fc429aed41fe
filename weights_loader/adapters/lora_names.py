"""The names of a model's layers in LoRA files: every spelling of every layer, computed from the configs.

Spellings join words by underscores (`to_out_0`, `time_emb_proj`) and cannot be parsed, so all are made and looked up.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from minisd.adapters.lora import Layer
from minisd.configs import CLIPTextConfig, UNetConfig
from minisd.models import CLIPTextTransformer, UNet
from minisd.pipeline import StableDiffusion
from weights_loader.names import diffusers, ldm
from weights_loader.saving import text_components

KOHYA_TEXT = {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
COMFYUI_TEXT = {"text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",)}  # clip_h is that of SD 2.x
OLD_ATTENTION = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}


class Target(NamedTuple):
    """A layer of a pipeline: the name of its network, and the name of our module in it."""

    network: str
    module: str


def networks(sd: StableDiffusion) -> dict[str, nn.Module]:
    """The networks that LoRAs change, by their names in files."""
    texts = {f"text_encoder{suffix}": part.encoder for suffix, part in text_components(sd).items()}
    return {"unet": sd.unet, **texts}


def layers(networks: Mapping[str, nn.Module]) -> dict[Target, Layer]:
    """Every layer that a LoRA can change: all matrices and convolutions."""
    return {
        Target(name, module): layer
        for name, network in networks.items()
        for module, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def spellings(networks: Mapping[str, nn.Module]) -> dict[str, Target]:
    """{the name of a layer in some file format: the layer}."""
    known = layers(networks)
    table: dict[str, Target] = {}
    for name, network in networks.items():
        if isinstance(network, UNet):
            pairs = _of_unet(network.config)
        elif isinstance(network, CLIPTextTransformer):
            pairs = _of_text_encoder(name, network.config)
        else:
            raise TypeError(f"{name} is a {type(network).__name__}, expected a UNet or a text encoder.")
        table |= {spelling: Target(name, ours) for spelling, ours in pairs if Target(name, ours) in known}
    return table


def _of_unet(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """(spelling, our module): diffusers with and without prefix, its old attention processors, kohya, cloneofsimo.

    kohya's files and ComfyUI's also use the names of the original layout.
    """
    for ours, theirs in diffusers.unet(config).items():
        yield theirs, ours
        yield f"unet.{theirs}", ours
        yield f"lora_unet_{_joined(theirs)}", ours
        for attention in (".attn1.", ".attn2."):
            block, found, part = theirs.partition(attention)
            if found:
                processor = f"{block}{attention}processor.{part.removesuffix('.0')}_lora"
                yield processor, ours
                yield f"unet.{processor}", ours
    for ours, theirs in ldm.unet(config).items():
        yield f"lora_unet_{_joined(theirs)}", ours
        yield f"diffusion_model.{theirs}", ours
        yield f"{ldm.UNET}{theirs}", ours
    for i, ours in enumerate(cloneofsimo_unet(config)):
        yield f"unet:{i}", ours


def _of_text_encoder(name: str, config: CLIPTextConfig) -> Iterator[tuple[str, str]]:
    """(spelling, our module): with and without `text_model.`; names without a network mean the first encoder."""
    for prefix in ("text_model.", ""):
        for ours, theirs in diffusers.text_encoder(config, prefix).items():
            yield f"{name}.{theirs}", ours
            yield from ((kohya + _joined(theirs), ours) for kohya in KOHYA_TEXT[name])
            yield from ((f"text_encoders.{comfy}.transformer.{theirs}", ours) for comfy in COMFYUI_TEXT[name])
            if name == "text_encoder":
                yield theirs, ours
            path, _, last = theirs.rpartition(".")
            if last in OLD_ATTENTION:
                yield f"{name}.{path}.{OLD_ATTENTION[last]}", ours
    for i, ours in enumerate(cloneofsimo_text_encoder(config)):
        yield f"{name}:{i}", ours


def cloneofsimo_unet(config: UNetConfig) -> list[str]:
    """Our modules in the order of their numbers in that format: down, up, middle.

    The order in a block is that of the attributes of diffusers' block: self-attention, feed-forward, cross-attention.
    """
    attention = ("q", "k", "v", "out")
    parts = {"attention1": attention, "feed_forward": ("expand",), "attention2": attention}
    levels = len(config.depths)
    transformers = [
        (f"{way}.{position}.transformers.{i}", config.depths[level])
        for way, blocks in (("down", config.layers_per_block), ("up", config.layers_per_block + 1))
        for position in range(levels)
        for level in [position if way == "down" else levels - 1 - position]
        for i in range(blocks)
    ]
    return [
        f"{transformer}.blocks.{n}.{part}.{layer}"
        for transformer, depth in [*transformers, ("middle.transformer", config.middle_depth)]
        for n in range(depth)
        for part, inner in parts.items()
        for layer in inner
    ]


def cloneofsimo_text_encoder(config: CLIPTextConfig) -> list[str]:
    """Our modules in the order of their numbers in that format: k, v, q, out of each layer."""
    return [f"layers.{i}.attention.{part}" for i in range(config.layers) for part in ("k", "v", "q", "out")]


def _joined(path: str) -> str:
    return path.replace(".", "_")
