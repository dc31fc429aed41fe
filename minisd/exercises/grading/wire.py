"""Results of a learner's function as bytes: JSON for the structure, safetensors for the tensors.

Nothing that runs code when it is read, because the bytes come from a learner's process.
"""

import json
import struct
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from minisd._internal.messages import printable

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
HEAD = struct.Struct(">Q")  # the length of the JSON text


class Unreadable(ValueError):
    """Bytes that are no message."""


class Writer:
    """Collects a message; each value is copied when it is added."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def plain(self, value: Any) -> Any:
        """A value as JSON can hold it; the type of a value that is not data is all that is kept of it."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind in (list, tuple):
            return {kind.__name__: [self.plain(each) for each in value]}
        if kind is dict:
            return {"dict": [[self.plain(key), self.plain(each)] for key, each in value.items()]}
        if isinstance(value, Tensor) and value.layout == torch.strided:
            dtype = str(value.dtype).removeprefix("torch.")
            if value.device.type == "meta" and dtype in DTYPES:
                return {"meta": [dtype, list(value.shape)]}
            if value.device.type == "cpu" and dtype in DTYPES:
                name = str(len(self.tensors))
                self.tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
                return {"tensor": name}
        return {"other": kind.__name__}

    def message(self, tree: Any) -> bytes:
        """A plain value and the tensors that it refers to."""
        text = json.dumps(tree).encode("ascii")
        return HEAD.pack(len(text)) + text + safetensors.torch.save(self.tensors)


def read(data: bytes) -> Any:
    """The value of a message. Raises Unreadable."""
    try:
        (length,) = HEAD.unpack_from(data)
        tensors = safetensors.torch.load(data[HEAD.size + length :])
        return _value(json.loads(data[HEAD.size : HEAD.size + length]), tensors)
    except Exception as error:  # anything can be wrong with foreign bytes
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _value(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(plain, dict):
        if isinstance(plain, list):
            raise Unreadable("a list without its type")
        return plain
    ((kind, content),) = plain.items()
    if kind in ("list", "tuple"):
        values = [_value(each, tensors) for each in content]
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        return {_value(key, tensors): _value(each, tensors) for key, each in content}
    if kind == "tensor":
        return tensors[content]
    if kind == "meta":
        return torch.empty(content[1], dtype=DTYPES[content[0]], device="meta")
    if kind == "other":
        name = printable(content, 60)
        return type(name, (), {"__repr__": lambda self: f"a {name}"})()
    raise Unreadable(f"a value of kind {kind!r}")
