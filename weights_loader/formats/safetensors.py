"""Read and write safetensors files.

The format: 8 bytes (the length of the header, little-endian), the header (JSON: dtype, shape and byte range of each
tensor), the data. The safetensors library reads and checks it; this module explains its refusals, and writes files
whose tensors begin at multiples of 64 bytes.
"""

import contextlib
import json
import mmap
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from minisd._internal.atomic_files import check_target, write_atomically
from minisd._internal.messages import shown
from minisd.errors import FileFormatError, InputError, IntegrityError, MinisdError, OutputError
from weights_loader.formats.contents import Contents, check_name

MAX_HEADER = 100_000_000  # bytes; the limit of the format
MOST_TENSORS = 100_000  # the largest models have a few thousand
ALIGNMENT = 64  # bytes; on other addresses the vector units of a processor may round differently
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def read_safetensors(path: Path) -> Contents:
    """Map the tensors of a safetensors file.

    Raises: FileFormatError (the header is damaged, or bytes follow the data), IntegrityError (incomplete).
    """
    try:
        with safe_open(path, "pt") as file:  # checks the header against the file
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise _refusal(path, error) from None
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(start - 8))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    entries.pop("__metadata__", None)
    if len(entries) > MOST_TENSORS:
        raise FileFormatError(
            f"{path} has {len(entries):,} tensors, expected at most {MOST_TENSORS:,}; no model has so many."
        )
    tensors = {name: _view(mapped, start, name, entry, path) for name, entry in entries.items()}
    return Contents(tensors, metadata, mapped=mapped)


def _view(mapped: mmap.mmap, start: int, name: str, entry: dict[str, Any], path: Path) -> torch.Tensor:
    """A tensor as a view of the mapped file; many times faster than the library's get_tensor."""
    dtype = TORCH_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise FileFormatError(
            f"{path}: {shown(name)} has the dtype {shown(entry['dtype'])}, expected {', '.join(TORCH_DTYPES)}."
        )
    begin, end = entry["data_offsets"]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    count = (end - begin) // dtype.itemsize
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start + begin).view(entry["shape"])


def _refusal(path: Path, error: SafetensorError) -> MinisdError:
    """Why the library refuses a file: it is cut, something is appended to it, or its header is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(min(length, MAX_HEADER))
    declared = 8 + length
    with contextlib.suppress(Exception):  # a damaged header declares its own length only
        declared += max(entry["data_offsets"][1] for name, entry in json.loads(raw).items() if name != "__metadata__")
    if size < declared < 2**63:
        return IntegrityError(
            f"{path} has {size:,} bytes, its header declares {declared:,}: an incomplete download; download it again."
        )
    if size > declared:
        return FileFormatError(
            f"{path} has {size:,} bytes, more than its header declares: something was appended, or the header is "
            "damaged; download it again."
        )
    return FileFormatError(
        f"{path}: the safetensors header is damaged or has an unknown dtype ({str(error)[:200]!a}); download it again."
    )


def save_safetensors(
    tensors: Mapping[str, torch.Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write tensors of any memory layout and device as a safetensors file, one after another.

    Tensors that share memory are written as separate tensors.

    Raises: InputError (a tensor or name that the format cannot store), OutputError (the target cannot be written; an
    existing file is unchanged).
    """
    path = Path(path)
    check_target(path, overwrite)
    header, names = _header(tensors, {} if metadata is None else metadata, path)
    needed = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(
            f"{path} needs {needed:,} bytes, but {free:,} are free there; free some space, or choose another folder."
        )

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in names:
            dense = tensors[name].detach().to("cpu").resolve_conj().resolve_neg().contiguous()
            file.write(dense.reshape(-1).view(torch.uint8).numpy().data)

    def check(file: BinaryIO) -> None:
        try:
            found = read_safetensors(Path(file.name)).tensors
        except MinisdError as error:
            raise OSError(f"the written file does not read back: {error}") from error
        if {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} != {
            name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
        }:
            raise OSError("the written file does not read back")

    write_atomically(path, write, overwrite, check)


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path) -> tuple[bytes, list[str]]:
    """The length and the header, and the tensor names in the order of their data.

    Tensors whose size is a multiple of 64 bytes come first, so that each of them begins at such a multiple.
    """
    if not tensors:
        raise InputError(f"{path}: there are no tensors to save.")
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()):
        raise InputError(f"{path}: the metadata of a safetensors file must map strings to strings.")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, path)
    names = sorted(
        tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, -tensors[name].dtype.itemsize, name)
    )
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in names:
        tensor = tensors[name]
        end = begin + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    try:
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{path}: the metadata contains text that is not valid Unicode.") from None
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header, names


def _check_tensor(name: str, tensor: torch.Tensor, path: Path) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise InputError(f"{path}: {shown(name)} cannot be the name of a tensor; expected a string, not __metadata__.")
    try:
        check_name(name, path)
    except FileFormatError as error:
        raise InputError(str(error)) from None
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES:
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise InputError(f"{path}: {shown(name)} is {got}, expected a tensor of {', '.join(DTYPES.values())}.")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise InputError(f"{path}: tensor {shown(name)} is sparse or on the meta device; expected a dense one.")
