"""Open a weight file safely: look at the content first, read tensors only through the map of the file.

Nothing in a file is executed, nothing is read into memory before it is used, and the file is never changed.
"""

import mmap
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from minisd.errors import FileFormatError, InputError, IntegrityError, OutOfMemory
from weights_loader.formats.checkpoint import read_legacy, read_zip
from weights_loader.formats.safetensors_header import MAX_HEADER, Contents, read_header, shown

Format = Literal["safetensors", "pickle"]
SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors",
    ".sft": "safetensors",
    ".ckpt": "pickle",
    ".bin": "pickle",
    ".pt": "pickle",
    ".pth": "pickle",
}
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
OTHERS = {  # what else may begin like this
    b"\x1f\x8b": "a gzip archive: unpack it first (gunzip)",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"RIFF": "a WebP picture or a sound",
    b"%PDF": "a PDF document",
    b"GGUF": "a GGUF model, which is quantized: get the .safetensors of this model",
    b"\x89HDF": "an HDF5 file (Keras?): get the .safetensors of this model",
    b"\x93NUMPY": "a NumPy array",
}


class WeightFile:
    """A weight file whose names, shapes and dtypes are known and whose tensors are mapped, not read.

    Attributes:
        path, format: where it is; what its content is ("safetensors" or "pickle"), whatever its name says.
        shapes, dtypes: of every tensor, by name.
        metadata: the header's (safetensors), or the plain values beside the weights (pickle: `global_step`).
        prefix: what every name began with and was cut ("module.", "_orig_mod."), or "".
        notices: one sentence each on what a person may want to know.
    """

    def __init__(self, path: Path, format: Format, contents: Contents, mapped: mmap.mmap) -> None:
        self.path = path
        self.format = format
        self.metadata = contents.metadata
        self.notices = contents.notices
        self.prefix = _common_prefix(list(contents.tensors))
        self._specs = {name.removeprefix(self.prefix): spec for name, spec in contents.tensors.items()}
        self._mapped = mapped
        self.shapes = {name: spec.shape for name, spec in self._specs.items()}
        self.dtypes = {name: spec.dtype for name, spec in self._specs.items()}
        if self.prefix:
            self.notices.append(f"The prefix {self.prefix!r} was cut from every tensor name.")
        if SUFFIXES.get(path.suffix.lower(), format) != format:
            what = "a safetensors file" if format == "safetensors" else "a PyTorch checkpoint"
            self.notices.append(f"{path.name} is {what}, whatever its name says; it was read as one.")

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, as a view of the mapped file: bytes are read when they are used.

        Writing into it changes memory only, never the file. Where old files place a tensor at an address that
        its dtype cannot use, it is a copy.

        Raises: InputError (no such name), IntegrityError (the file changed its size since it was opened).
        """
        if name not in self._specs:
            raise InputError(f"{self.path} has no tensor {shown(name)}; `.shapes` lists those that it has.")
        if self._mapped.size() != len(self._mapped):  # touching pages that are gone would kill the process
            raise IntegrityError(
                f"{self.path} had {len(self._mapped):,} bytes when it was opened, now it has "
                f"{self._mapped.size():,}: something rewrites it; open it again when that is done."
            )
        dtype, shape, stride, offset = self._specs[name]
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        count = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if offset % dtype.itemsize == 0:
            flat = torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=offset)
        else:
            raw = torch.frombuffer(self._mapped, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
            flat = raw.clone().view(dtype)
        return flat.as_strided(shape, stride)


def open_weights(path: str | Path) -> WeightFile:
    """Open a .safetensors, .ckpt, .bin or .pt file, whichever its content is.

    Raises: InputError (no such file), FileFormatError (no weight file), IntegrityError (incomplete),
    UnsafeFileError (would run code, or is built to harm), MismatchError (no tensors, or not of a plain kind),
    OutOfMemory (cannot be mapped).
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode  # before opening: a FIFO would block, a device may act
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)[:200]!r}: no such file ({_reason(error)}); check the path.") from None
    if stat.S_ISDIR(mode):
        raise FileFormatError(f"{path} is a folder, expected a weight file; name the file inside it.")
    if not stat.S_ISREG(mode):
        raise FileFormatError(f"{path} is a pipe, socket or device, expected a regular file.")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            reader = _sniff(file.read(512), size, path)
            contents = reader(file, size, path)
            mapped = _map(file, size, path)
    except PermissionError as error:
        raise FileFormatError(f"{path} cannot be read ({_reason(error)}); check its permissions.") from None
    return WeightFile(path, "safetensors" if reader is read_header else "pickle", contents, mapped)


def _sniff(head: bytes, size: int, path: Path) -> Callable[[BinaryIO, int, Path], Contents]:
    """The reader for a file that begins with `head`; what is no weight file is named in a FileFormatError."""
    if size == 0:
        raise FileFormatError(f"{path} is empty (0 bytes); download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise FileFormatError(f"{path} is {_lfs_pointer(head)}, not the file itself: run `git lfs pull` there.")
    if size < 8:
        raise FileFormatError(f"{path} has {size} bytes, too few for any weight file; download it again.")
    if 0 < int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8:].lstrip().startswith(b"{"):
        return read_header
    if head.startswith(b"PK\x03\x04"):
        return read_zip
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise FileFormatError(f"{path} is {what}; expected a .safetensors or .ckpt file.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<!", b"<html", b"<HTML", b"<?xml", b"<head")):
        raise FileFormatError(
            f"{path} is an HTML page, not a weight file: the download met a login or error page; download it again."
        )
    if text.startswith((b"{", b"[")):  # neither byte begins a pickle
        raise FileFormatError(
            f"{path} is JSON text (it begins {shown(text[:40].decode('utf-8', 'replace'))}), "
            "expected weights; name the .safetensors file beside it."
        )
    if head.startswith(b"\x80") or SUFFIXES.get(path.suffix.lower()) != "safetensors":
        return read_legacy  # which is also the one that names what a raw pickle wants to run
    return read_header  # which says what is wrong with it


def _lfs_pointer(head: bytes) -> str:
    digits = head.partition(b"\nsize ")[2].partition(b"\n")[0]
    if not digits.isdigit():
        return "a Git LFS pointer"
    size = int(digits)
    return (
        f"the Git LFS pointer of a {size / 1e9:.2f} GB file"
        if size >= 1e7
        else f"the Git LFS pointer of {size:,} bytes"
    )


def _map(file: BinaryIO, size: int, path: Path) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)  # private: writing never reaches the file
    except ValueError:
        raise IntegrityError(f"{path} shrank while it was opened: something rewrites it.") from None
    except OSError as error:
        raise OutOfMemory(
            f"{path} cannot be mapped: {size:,} bytes of address space ({_reason(error)}); free memory first."
        ) from None


def _common_prefix(names: list[str]) -> str:
    """The wrappers that all names share, outermost first."""
    prefix = ""
    while True:
        for wrapper in WRAPPERS:
            if names and all(name.startswith(prefix + wrapper) and name != prefix + wrapper for name in names):
                prefix += wrapper
                break
        else:
            return prefix


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
