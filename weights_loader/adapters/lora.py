"""Load a LoRA: find its file, match it to the model, merge it."""

import warnings
from pathlib import Path

import torch

from minisd._internal.validation import real_number
from minisd.adapters.lora import LARGEST_SCALE, Layer, Lora, LowRank
from minisd.errors import MismatchError, NumericalError
from minisd.pipeline import StableDiffusion
from weights_loader.adapters.lora_file import Keys, plan
from weights_loader.adapters.lora_names import Target, layers
from weights_loader.adapters.parts import networks
from weights_loader.adapters.peft_config import PeftConfig, header_settings
from weights_loader.build import SHOWN
from weights_loader.formats.weight_file import WeightFile, open_weights
from weights_loader.hub.repo_files import read_json

PEFT_CONFIG = "adapter_config.json"
IN_FOLDERS = (  # in order of preference
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)


def load_lora(sd: StableDiffusion, path: str | Path, scale: float = 1.0) -> Lora:
    """Merge a LoRA into the networks of a pipeline; returns the handle that rescales and removes it.

    path: a .safetensors, .pt or .bin file in the format of diffusers, PEFT, kohya (LoCon too) or cloneofsimo; or the
    folder of such a file with PEFT's adapter_config.json. scale: how much of it; 1 is as it was trained.
    Several may be loaded; removing one leaves the bits that the weights would have had without it.

    Raises InputError (scale), MismatchError (another kind of adapter, another family, keys or shapes that fit no
    layer), NumericalError (NaN), and what reading files raises; nothing is changed then.
    """
    real_number(scale, "scale", -LARGEST_SCALE, LARGEST_SCALE)
    file, config = _open(Path(path).expanduser())
    parts = networks(sd)
    there = layers(parts)
    found = plan(file.shapes, file.metadata, parts, file.path)
    if found.embeddings:
        words = ", ".join(found.embeddings)
        warnings.warn(f"{file.path.name} also holds the words {words}, which load_embedding adds.", stacklevel=2)
    changes = {target: _read(file, keys, target, config) for target, keys in found.layers.items()}
    _check_shapes(changes, found.layers, there, file.path)
    return Lora({there[target]: change for target, change in changes.items()}, scale)


def _open(path: Path) -> tuple[WeightFile, PeftConfig]:
    """The weight file, of a folder the one in it; and what is said of alpha beside the tensors."""
    if not path.is_dir():
        file = open_weights(path)
        return file, PeftConfig(header_settings(file), path)
    here = [path / name for name in IN_FOLDERS if (path / name).is_file()]
    if not here:
        raise MismatchError(
            f"{path} is a folder without {IN_FOLDERS[0]} or {IN_FOLDERS[2]}; name the LoRA's file in it."
        )
    file = open_weights(here[0])
    if not (path / PEFT_CONFIG).is_file():
        return file, PeftConfig(header_settings(file), here[0])
    return file, PeftConfig(read_json(path / PEFT_CONFIG), path / PEFT_CONFIG)


def _read(file: WeightFile, keys: Keys, target: Target, config: PeftConfig) -> LowRank:
    """The change of one layer, copied: LoRAs are small, and their files are often written again."""
    down, up = (file.tensor(key).clone() for key in (keys.down, keys.up))
    for key, tensor in ((keys.down, down), (keys.up, up)):
        if not tensor.is_floating_point():
            raise MismatchError(f"{file.path}: {key} holds {tensor.dtype}, expected floating-point weights.")
        if tensor.dim() < 2 or 0 in tensor.shape:
            raise MismatchError(f"{file.path}: {key} has shape {tuple(tensor.shape)}, expected a matrix or a kernel.")
        if not torch.isfinite(tensor).all():
            raise NumericalError(f"{file.path}: {key} holds NaN or infinity; get the LoRA again; nothing was changed.")
    rank = down.shape[0]
    if keys.alpha is None:
        return LowRank(down, up, config.factor(keys.down, target.network, rank))
    alpha = file.tensor(keys.alpha)
    if alpha.numel() != 1 or not torch.isfinite(alpha).all():
        raise MismatchError(f"{file.path}: {keys.alpha} has shape {tuple(alpha.shape)}, expected one finite number.")
    return LowRank(down, up, float(alpha) / rank)


def _check_shapes(
    changes: dict[Target, LowRank], keys: dict[Target, Keys], there: dict[Target, Layer], path: Path
) -> None:
    wrong = [
        f"{keys[target].down} {tuple(change.down.shape)} and up {tuple(change.up.shape)} "
        f"(the layer is {tuple(there[target].weight.shape)})"
        for target, change in changes.items()
        if not change.fits(there[target])
    ]
    if wrong:
        raise MismatchError(
            f"{path} does not fit, {len(wrong)} layers have another shape: {', '.join(wrong[:SHOWN])}"
            f"{', ...' if len(wrong) > SHOWN else ''}; use a LoRA made for this model; nothing was changed."
        )
