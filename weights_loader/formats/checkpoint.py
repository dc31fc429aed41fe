"""PyTorch checkpoints (.ckpt .bin .pt), read without executing anything.

torch.save writes a pickle, and beside it the tensors' bytes: in a zip archive, or in older files one after another.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from minisd.errors import FileFormatError, IntegrityError, MismatchError, UnsafeFileError
from weights_loader.formats.pickle_machine import Global, Storage, StoredTensor, Stub, unpickle
from weights_loader.formats.safetensors_header import Contents, TensorSpec, check_name, shown
from weights_loader.formats.zip_archive import (
    MAX_MEMBERS,
    MAX_PICKLE,
    RECIPE,
    directory,
    hostile,
    read_member,
    start_of,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of files that torch.save wrote before version 1.6


def read_zip(file: BinaryIO, size: int, path: Path) -> Contents:
    """Read the directory and the pickle of a checkpoint in the zip format of torch.save.

    Raises: UnsafeFileError (executable, or built to harm), FileFormatError, IntegrityError, MismatchError.
    """
    members = directory(file, size, path)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise FileFormatError(f"{path} is a zip archive, but not of a PyTorch checkpoint; unpack it first.")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = root + "byteorder"  # absent from files of PyTorch 1
    if byteorder in members and read_member(file, byteorder, members[byteorder], path) != b"little":
        raise FileFormatError(f"{path} was written on a big-endian machine; {RECIPE}.")
    value = unpickle(io.BytesIO(read_member(file, pickles[0], members[pickles[0]], path)), {}, path)

    def locate(storage: Storage) -> int:
        name = f"{root}data/{storage.key}"
        if name not in members or members[name].size < storage.count * storage.dtype.itemsize:
            raise IntegrityError(f"{path} lacks the data of storage {shown(storage.key)}; download it again.")
        return start_of(file, name, members[name], path)

    return _collect(value, locate, path)


def read_legacy(file: BinaryIO, size: int, path: Path) -> Contents:
    """Read a checkpoint in the older format of torch.save: five pickles, then the storages one after another.

    Raises: as `read_zip`; UnsafeFileError also for a pickle that torch.save did not write.
    """
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE))
    storages: dict[str, Storage] = {}
    if unpickle(stream, storages, path) != LEGACY_MAGIC:
        raise UnsafeFileError(f"{path} is a raw pickle that torch.save did not write; {RECIPE}.")
    _version, system, value, keys = (unpickle(stream, storages, path) for _ in range(4))
    if not (isinstance(system, dict) and system.get("little_endian") is True and isinstance(keys, list)):
        raise FileFormatError(f"{path} is a damaged or big-endian checkpoint; {RECIPE}.")
    places: dict[str, int] = {}
    position = stream.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        if not isinstance(key, str) or key not in storages or storages[key].count != count:
            raise IntegrityError(f"{path}: storage {shown(key)} is not where it should be; download it again.")
        places[key] = position + 8
        position += 8 + count * storages[key].dtype.itemsize
    if position != size or places.keys() != storages.keys():
        raise IntegrityError(f"{path} should end after {position:,} bytes, has {size:,}; download it again.")

    def locate(storage: Storage) -> int:
        if storages[storage.key] != storage:
            raise FileFormatError(f"{path} contradicts itself about storage {shown(storage.key)}; {RECIPE}.")
        return places[storage.key]

    return _collect(value, locate, path)


def _collect(value: Any, locate: Callable[[Storage], int], path: Path) -> Contents:
    """The tensors of a dict, of its `state_dict`, of a list, or of the dicts in a dict without tensors."""
    if isinstance(value, Stub | Global):
        raise UnsafeFileError(f"{path} is a pickled object of {shown(value.name)}, not a dict of tensors; {RECIPE}.")
    if isinstance(value, list | tuple):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a {type(value).__name__}, expected a dict of tensors; {RECIPE}.")
    if isinstance(value.get("state_dict"), dict):
        weights, others = (
            value["state_dict"],
            {key: item for key, item in value.items() if key != "state_dict"},
        )
    elif any(_is_tensor(item) for item in value.values()):
        weights, others = value, {}
    else:
        weights, others = _flatten(value, path)
    tensors = {}
    for name, item in weights.items():
        if isinstance(name, str) and _is_tensor(item):
            check_name(name, path)
            tensors[name] = _check_view(name, item, locate, path)
        else:
            others[name] = item
        if len(tensors) > MAX_MEMBERS:
            raise hostile(path, f"names more than {MAX_MEMBERS:,} tensors")
    if not tensors:
        raise MismatchError(f"{path}: a sound PyTorch checkpoint without any tensor; expected weights.")
    return Contents(tensors, *_describe(others))


def _is_tensor(item: Any) -> bool:
    return isinstance(item, StoredTensor) or (
        isinstance(item, Stub) and item.name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_"))
    )


def _flatten(value: dict[Any, Any], path: Path) -> tuple[dict[str, Any], dict[Any, Any]]:
    """The tensors of the dicts (or nn.ParameterDicts) in a dict as "outer.inner", and what else is in it."""
    found = {}
    others = {}
    seen = set()  # the same dict under many names could grow without end
    for outer, item in value.items():
        inner = item.state.get("_parameters") if isinstance(item, Stub) and isinstance(item.state, dict) else item
        if not isinstance(outer, str) or not isinstance(inner, dict) or id(inner) in seen:
            others[outer] = item
            continue
        seen.add(id(inner))
        for name, leaf in inner.items():
            if isinstance(name, str) and _is_tensor(leaf):
                check_name(outer, path)
                check_name(name, path)
                found[f"{outer}.{name}"] = leaf
    return found, others


def _describe(others: dict[Any, Any]) -> tuple[dict[str, str], list[str]]:
    """What lies beside the weights: plain values as metadata, and one notice that names the rest too."""
    plain = {
        key: str(item) for key, item in others.items() if isinstance(key, str) and isinstance(item, str | int | float)
    }
    names = ", ".join(shown(key.name if isinstance(key, Global) else key) for key in list(others)[:5])
    more = ", ..." if len(others) > 5 else ""
    notices = [f"{len(others)} entries beside the weights were not loaded: {names}{more}."] if others else []
    return plain, notices


def _check_view(name: str, item: StoredTensor | Stub, locate: Callable[[Storage], int], path: Path) -> TensorSpec:
    """Where a tensor lies in the file; its view must stay in its storage and touch no element twice."""
    where = f"{path}: tensor {shown(name)}"
    if isinstance(item, Stub):
        kind = item.name.rpartition("._rebuild_")[2].replace("_", " ")
        raise MismatchError(f"{where} is of a special kind ({shown(kind)}); expected a plain dense tensor.")
    shape, stride, offset, storage = item.shape, item.stride, item.offset, item.storage
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 64) or not all(
        type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *stride)
    ):
        raise FileFormatError(
            f"{where} has shape {shown(shape)}, stride {shown(stride)}; expected two tuples of sizes."
        )
    reach = 0  # the last element that the dimensions so far can touch
    for step, n in sorted(zip(stride, shape, strict=True)):
        if n > 1 and step <= reach and 0 not in shape:
            raise MismatchError(
                f"{where} of shape {shown(shape)} repeats its elements (stride {shown(stride)}), which no "
                "weight does; save it again after .contiguous()."
            )
        reach += max(n - 1, 0) * step
    available = storage.count * storage.dtype.itemsize // item.dtype.itemsize
    if math.prod(n for n in shape if n) >= 2**63 or (0 not in shape and offset + reach >= available):
        raise FileFormatError(f"{where} of shape {shown(shape)} reaches beyond its {available:,} stored elements.")
    return TensorSpec(item.dtype, shape, stride, locate(storage) + offset * item.dtype.itemsize)
