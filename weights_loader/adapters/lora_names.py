"""What LoRA files call the layers of a model: every spelling of every layer, computed from the configs.

Spellings run words together (`to_out_0`, `time_emb_proj`), so none can be taken apart: all are made and looked up.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from minisd.adapters.lora import Layer
from minisd.configs import CLIPTextConfig, UNetConfig
from minisd.models import CLIPTextTransformer, UNet
from weights_loader.names import diffusers, ldm

KOHYA_TEXT = {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
OLD_ATTENTION = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}


class Target(NamedTuple):
    """A layer of a pipeline: the network's name and our module's name in it."""

    network: str
    module: str


def layers(networks: Mapping[str, nn.Module]) -> dict[Target, Layer]:
    """Every layer that a LoRA may change: all matrices and convolutions."""
    return {
        Target(name, module): layer
        for name, network in networks.items()
        for module, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def spellings(networks: Mapping[str, nn.Module]) -> dict[str, Target]:
    """{a layer's name in some file format: the layer}."""
    there = layers(networks)
    table: dict[str, Target] = {}
    for name, network in networks.items():
        if isinstance(network, UNet):
            pairs = _of_unet(network.config)
        elif isinstance(network, CLIPTextTransformer):
            pairs = _of_text_encoder(name, network.config)
        else:
            raise TypeError(f"{name} is a {type(network).__name__}, expected a UNet or a text encoder.")
        table |= {spelling: Target(name, ours) for spelling, ours in pairs if Target(name, ours) in there}
    return table


def _of_unet(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """(spelling, our module): diffusers with and without prefix, its old attention processors, kohya, cloneofsimo."""
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
    for i, ours in enumerate(cloneofsimo_unet(config)):
        yield f"unet:{i}", ours


def _of_text_encoder(name: str, config: CLIPTextConfig) -> Iterator[tuple[str, str]]:
    """(spelling, our module): with and without `text_model.`; a bare name means the first encoder."""
    for prefix in ("text_model.", ""):
        for ours, theirs in diffusers.text_encoder(config, prefix).items():
            yield f"{name}.{theirs}", ours
            yield from ((kohya + _joined(theirs), ours) for kohya in KOHYA_TEXT[name])
            if name == "text_encoder":
                yield theirs, ours
            path, _, last = theirs.rpartition(".")
            if last in OLD_ATTENTION:
                yield f"{name}.{path}.{OLD_ATTENTION[last]}", ours
    for i, ours in enumerate(cloneofsimo_text_encoder(config)):
        yield f"{name}:{i}", ours


def cloneofsimo_unet(config: UNetConfig) -> list[str]:
    """Our modules in the order in which that format numbers them: down, up, middle.

    In a block: first attention, feed-forward, second attention, as the attributes of diffusers' block were ordered.
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
    """Our modules in the order in which that format numbers them: of each layer k, v, q, out."""
    return [f"layers.{i}.attention.{part}" for i in range(config.layers) for part in ("k", "v", "q", "out")]


def _joined(path: str) -> str:
    return path.replace(".", "_")
