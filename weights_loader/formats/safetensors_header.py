"""The header of a safetensors file: read and checked in full before any tensor is.

The format: 8 bytes (length of the header, little-endian), the header (JSON: for each name its dtype, shape
and byte range), the data.
"""

import json
import math
import re
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from minisd.errors import FileFormatError, IntegrityError, MismatchError

MAX_HEADER = 100_000_000  # bytes; the limit of the format
MAX_NAME = 1000  # characters
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class TensorSpec(NamedTuple):
    """Where a tensor lies: `stride` counts elements, `offset` bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass
class Contents:
    """What a reader found in a file, without having read any tensor."""

    tensors: dict[str, TensorSpec]
    metadata: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def read_header(file: BinaryIO, size: int, path: Path) -> Contents:
    """Read and check the header of an open safetensors file of `size` bytes.

    Raises: FileFormatError (breaks the format), IntegrityError (truncated), MismatchError (no tensors).
    Source: the rules of the safetensors format; that names are sensible and unique comes on top.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= MAX_HEADER:
        raise FileFormatError(
            f"{path}: the safetensors header claims {length:,} bytes, expected 1 to {MAX_HEADER:,}: "
            "this is no safetensors file or a damaged one; download it again."
        )
    if 8 + length > size:
        raise _incomplete(path, 8 + length, size)
    header = _parse(file.read(length), path)
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise FileFormatError(f"{path}: the __metadata__ of the header must map strings to strings.")
    if not header:
        raise MismatchError(f"{path}: a sound safetensors file without any tensor; expected weights.")
    start = 8 + length
    ranges = []
    tensors = {}
    for name, entry in header.items():
        spec, end = _check_entry(name, entry, start, path)
        tensors[name] = spec
        ranges.append((spec.offset, end, name))
    _check_tiling(sorted(ranges), start, size, path)
    return Contents(tensors, metadata)


def check_name(name: str, path: Path) -> None:
    """Refuse tensor names that are empty, too long, or hold control characters or lone surrogates."""
    if not 0 < len(name) <= MAX_NAME or re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        raise FileFormatError(
            f"{path}: the tensor name {shown(name)} has {len(name):,} characters; expected 1 to "
            f"{MAX_NAME:,}, none of them a control character."
        )


def shown(value: object) -> str:
    """A value out of a file as an error message may quote it: escaped, and cut to at most 80 characters."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:60] + "…")
    return ascii(reprlib.repr(value)[:80])[1:-1]


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a dense row-major tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise FileFormatError(f"{path}: the header lists {shown(twice)} twice; readers would disagree.")
        return result

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except FileFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: the safetensors header is no valid UTF-8 JSON ({shown(str(error))}): a damaged file; "
            "download it again."
        ) from None
    if not isinstance(header, dict):
        raise FileFormatError(f"{path}: the header is a JSON {type(header).__name__}, expected an object.")
    return header


def _check_entry(name: str, entry: Any, start: int, path: Path) -> tuple[TensorSpec, int]:
    """One line of the header as (spec, end of the byte range)."""
    check_name(name, path)
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{where} must have exactly dtype, shape and data_offsets in the header.")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise FileFormatError(f"{where} has dtype {shown(entry['dtype'])}; supported are {', '.join(DTYPES)}.")
    dtype = DTYPES[entry["dtype"]]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or len(shape) > 64 or math.prod(n for n in shape if n) >= 2**63:
        raise FileFormatError(f"{where} has shape {shown(shape)}, expected a list of sizes.")
    if not _counts(offsets) or len(offsets) != 2:
        raise FileFormatError(f"{where} has data_offsets {shown(offsets)}, expected [begin, end].")
    begin, end = offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise FileFormatError(
            f"{where} ({entry['dtype']} {shown(shape)}) takes {needed:,} bytes, its range {end - begin:,}."
        )
    return TensorSpec(dtype, tuple(shape), contiguous_stride(tuple(shape)), start + begin), start + end


def _counts(value: Any) -> bool:
    """Is it a list of integers that are not negative?  (JSON true is no integer.)"""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_tiling(ranges: list[tuple[int, int, str]], start: int, size: int, path: Path) -> None:
    """The byte ranges must follow each other without hole or overlap, from the header to the file's end."""
    expected = start
    for begin, end, name in ranges:
        if begin != expected:
            problem = "overlaps the tensor before it" if begin < expected else "leaves a hole before it"
            raise FileFormatError(f"{path}: tensor {shown(name)} {problem} ({begin:,}, expected {expected:,}).")
        expected = end
    if expected > size:
        raise _incomplete(path, expected, size)
    if expected < size:
        raise FileFormatError(
            f"{path}: {size - expected:,} bytes follow the last tensor: something was appended to this file; "
            "download it again."
        )


def _incomplete(path: Path, expected: int, size: int) -> IntegrityError:
    return IntegrityError(
        f"{path}: declares {expected:,} bytes, has {size:,}: an incomplete download; download it again."
    )
