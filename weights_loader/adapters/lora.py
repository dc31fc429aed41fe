"""Load a LoRA: find its file, match it to the model, merge it."""

import os
import warnings
from pathlib import Path

import torch

from minisd._internal.json_files import read_json
from minisd._internal.messages import shown
from minisd._internal.validation import real_number
from minisd.adapters.lora import LARGEST_SCALE, Layer, Lora, LowRank
from minisd.errors import MismatchError, NumericalError
from minisd.pipeline import StableDiffusion
from weights_loader.adapters.lora_file import Keys, plan
from weights_loader.adapters.lora_names import Target, layers, networks
from weights_loader.adapters.peft_config import PeftConfig, header_settings
from weights_loader.build import listed
from weights_loader.formats.weight_file import WeightFile, computable, open_weights

LARGEST_ALPHA = 1_000_000  # usual ones are near the rank
PEFT_CONFIG = "adapter_config.json"
FILES_IN_FOLDERS = (  # in order of preference
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)


def load_lora(sd: StableDiffusion, path: str | Path, scale: float = 1.0) -> Lora:
    """Merge a LoRA into the networks of a pipeline; returns a handle that changes its scale and removes it.

    path: a .safetensors, .pt or .bin file in the format of diffusers, PEFT, kohya (LoCon too), ComfyUI or cloneofsimo;
    or a folder with such a file and PEFT's adapter_config.json. scale: the strength; 1 is that of training.
    Several LoRAs can be merged. Removing one restores the bits that the weights would have without it.

    Raises InputError (scale), MismatchError (another kind of adapter, another family, keys or shapes that fit no
    layer), NumericalError (NaN), and what reading files raises; the model is unchanged then.
    """
    real_number(scale, "scale", -LARGEST_SCALE, LARGEST_SCALE)
    file, config = _open(path)
    parts = networks(sd)
    layer_of = layers(parts)
    found = plan(file.shapes, file.metadata, parts, file.path)
    if found.embeddings:
        words = ", ".join(found.embeddings)
        warnings.warn(f"{file.path.name} also holds the words {words}; load_embedding adds them.", stacklevel=2)
    changes = {target: _read(file, keys, target, config) for target, keys in found.layers.items()}
    _check_shapes(changes, found.layers, layer_of, file.path)
    return Lora({layer_of[target]: change for target, change in changes.items()}, scale)


def _open(source: str | Path) -> tuple[WeightFile, PeftConfig]:
    """The weight file, which may be in a folder, and the settings stored beside its tensors."""
    path = Path(os.path.expanduser(source))  # os.path raises for no name, unlike Path
    if not os.path.isdir(path):
        file = open_weights(path)
        return file, PeftConfig(header_settings(file), path)
    files = [path / name for name in FILES_IN_FOLDERS if (path / name).is_file()]
    if not files:
        raise MismatchError(
            f"{path} is a folder without {FILES_IN_FOLDERS[0]} or {FILES_IN_FOLDERS[2]}; give the path of the LoRA's "
            "file."
        )
    file = open_weights(files[0])
    if not (path / PEFT_CONFIG).is_file():
        return file, PeftConfig(header_settings(file), files[0])
    return file, PeftConfig(read_json(path / PEFT_CONFIG), path / PEFT_CONFIG)


def _read(file: WeightFile, keys: Keys, target: Target, config: PeftConfig) -> LowRank:
    """The change of one layer, as a copy: LoRA files are small and often rewritten."""
    down, up = (computable(file.tensor(key)).clone() for key in (keys.down, keys.up))
    for key, tensor in ((keys.down, down), (keys.up, up)):
        if not tensor.is_floating_point():
            raise MismatchError(f"{file.path}: {key} holds {tensor.dtype}, expected floating-point weights.")
        if tensor.dim() < 2 or 0 in tensor.shape:
            raise MismatchError(f"{file.path}: {key} has shape {tuple(tensor.shape)}, expected a matrix or a kernel.")
        if not torch.isfinite(tensor).all():
            raise NumericalError(f"{file.path}: {key} holds NaN or infinity; download the LoRA again.")
    rank = down.shape[0]
    if keys.alpha is None:
        return LowRank(down, up, config.factor(keys.down, target.network, rank))
    alpha = computable(file.tensor(keys.alpha))
    if alpha.numel() != 1 or not abs(float(alpha)) <= LARGEST_ALPHA:  # NaN is not
        raise MismatchError(
            f"{file.path}: {keys.alpha} is {shown(alpha.tolist())}, expected one number of at most {LARGEST_ALPHA:,}; "
            "download the LoRA again."
        )
    return LowRank(down, up, float(alpha) / rank)


def _check_shapes(
    changes: dict[Target, LowRank], keys: dict[Target, Keys], layer_of: dict[Target, Layer], path: Path
) -> None:
    wrong = [
        f"{keys[target].down} {tuple(change.down.shape)} and up {tuple(change.up.shape)} "
        f"(the layer is {tuple(layer_of[target].weight.shape)})"
        for target, change in changes.items()
        if not change.fits(layer_of[target])
    ]
    if wrong:
        raise MismatchError(
            f"{path} does not fit, {len(wrong)} layers have another shape: {listed(wrong)}; use a LoRA made for this "
            "model; nothing was changed."
        )
