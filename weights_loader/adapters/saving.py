"""Write LoRAs and textual-inversion embeddings in the formats of diffusers."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from minisd._internal.messages import listed
from minisd.adapters import LowRank
from minisd.errors import InputError
from minisd.models import UNet
from weights_loader.adapters.lora_names import layers
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.names import diffusers


def save_lora(changes: Mapping[str, LowRank], unet: UNet, path: str | Path, overwrite: bool = False) -> None:
    """Write changes of a UNet, {name of a weight: its change}. Raises InputError, OutputError.

    The weights are those of matrices and convolutions, which every program that reads LoRAs can change.
    """
    modules = diffusers.unet(unet.config)
    known = {f"{target.module}.weight" for target in layers({"unet": unet})}
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise InputError(
            f"changes holds {listed(unknown, 3)}, expected weights of the UNet's matrices and convolutions."
        )
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        theirs = f"unet.{modules[name.removesuffix('.weight')]}"
        tensors[f"{theirs}.lora_A.weight"] = change.down
        tensors[f"{theirs}.lora_B.weight"] = (
            change.factor * change.up
        )  # includes the factor, because the file has no alpha
    save_safetensors(tensors, path, {"format": "pt"}, overwrite)


def save_embedding(token: str, vectors: Tensor, path: str | Path, overwrite: bool = False) -> None:
    """Write the vectors (n, width) of a token. Raises OutputError."""
    save_safetensors({token: vectors}, path, {"format": "pt"}, overwrite)
