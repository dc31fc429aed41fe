"""Write safetensors files, tensor by tensor, atomically."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from minisd._internal.atomic_files import check_target, write_atomically
from minisd.errors import FileFormatError, InputError, MinisdError, OutputError
from weights_loader.formats.safetensors_header import DTYPES, MAX_HEADER, check_name, read_header, shown

NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def save_safetensors(
    tensors: Mapping[str, torch.Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write tensors of any shape and device as a safetensors file, one after another.

    Each tensor is written dense: views and shared memory are fine and come out as tensors of their own.

    Raises: InputError (a tensor or name that the format cannot hold), OutputError (no writing to the target;
    what was there is untouched).
    """
    path = Path(path)
    check_target(path, overwrite)
    header, names = _header(tensors, {} if metadata is None else metadata, path)
    needed = len(header) + sum(tensors[name].numel() * tensors[name].dtype.itemsize for name in names)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(f"{path} needs {needed:,} bytes, {free:,} are free there; make room, or choose another.")

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in names:
            dense = tensors[name].detach().to("cpu").resolve_conj().resolve_neg().contiguous()
            file.write(dense.reshape(-1).view(torch.uint8).numpy().data)

    def check(file: BinaryIO) -> None:
        try:
            found = read_header(file, file.seek(0, os.SEEK_END), path).tensors
        except MinisdError as error:
            raise OSError(f"what was written does not read back: {error}") from error
        if {name: (spec.dtype, spec.shape) for name, spec in found.items()} != {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
        }:
            raise OSError("what was written does not read back")

    write_atomically(path, write, overwrite, check)


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path) -> tuple[bytes, list[str]]:
    """The header with its length before it, and the tensor names in the order in which their data follow."""
    if not tensors:
        raise InputError(f"{path}: no tensors to save.")
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()):
        raise InputError(f"{path}: the metadata of a safetensors file maps strings to strings.")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, path)
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # so all are aligned
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in names:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {
            "dtype": NAME_OF_DTYPE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    try:
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{path}: the metadata holds text that is no valid Unicode.") from None
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise InputError(f"{path}: names and metadata take {len(header):,} bytes, allowed are {MAX_HEADER:,}.")
    return len(header).to_bytes(8, "little") + header, names


def _check_tensor(name: str, tensor: torch.Tensor, path: Path) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise InputError(f"{path}: {shown(name)} is no name for a tensor; expected a text, but __metadata__.")
    try:
        check_name(name, path)
    except FileFormatError as error:
        raise InputError(str(error)) from None
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in NAME_OF_DTYPE:
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise InputError(f"{path}: {shown(name)} is {got}, expected a tensor of {', '.join(DTYPES)}.")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise InputError(f"{path}: tensor {shown(name)} has no plain data (sparse or meta); expected a dense one.")
