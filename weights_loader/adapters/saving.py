"""Write LoRAs and textual-inversion embeddings in the formats of diffusers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from minisd._internal.messages import listed
from minisd.adapters import LowRank
from minisd.errors import InputError
from minisd.models import CLIPTextTransformer, UNet
from weights_loader.adapters.lora_names import layers
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.names import diffusers


def save_lora(
    changes: Mapping[str, LowRank],
    unet: UNet,
    path: str | Path,
    overwrite: bool = False,
    encoders: Sequence[tuple[CLIPTextTransformer, Mapping[str, LowRank]]] = (),
) -> None:
    """Write changes of a UNet, {name of a weight: its change}. Raises InputError, OutputError.

    encoders: the text encoders, in the order of the pipeline, with changes of the same kind. The weights are those of
    matrices and convolutions, which every program that reads LoRAs can change.
    """
    tensors = _tensors("unet", unet, diffusers.unet(unet.config), changes)
    for number, (encoder, their_changes) in enumerate(encoders):
        name = "text_encoder" if number == 0 else f"text_encoder_{number + 1}"
        tensors |= _tensors(name, encoder, diffusers.text_encoder(encoder.config), their_changes)
    save_safetensors(tensors, path, {"format": "pt"}, overwrite)


def _tensors(
    network: str, module: nn.Module, names: Mapping[str, str], changes: Mapping[str, LowRank]
) -> dict[str, Tensor]:
    """The changes of a network in the format of PEFT. names: ours to those of diffusers. Raises InputError."""
    known = {f"{target.module}.weight" for target in layers({network: module})}
    if unknown := [name for name in changes if name not in known]:
        whose = "UNet" if network == "unet" else "text encoder"
        raise InputError(
            f"changes holds {listed(unknown, 3)}, expected weights of the {whose}'s matrices and convolutions."
        )
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        theirs = f"{network}.{names[name.removesuffix('.weight')]}"
        tensors[f"{theirs}.lora_A.weight"] = change.down
        tensors[f"{theirs}.lora_B.weight"] = change.factor * change.up  # the file has no alpha
    return tensors


def save_embedding(token: str, vectors: Tensor, path: str | Path, overwrite: bool = False) -> None:
    """Write the vectors (n, width) of a token. Raises OutputError."""
    save_safetensors({token: vectors}, path, {"format": "pt"}, overwrite)
