"""Open weight files of any format: their content decides which, and their tensors are mapped, not read.

Nothing in a file is executed, and no file is ever changed.
"""

import mmap
import stat
import sys
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from minisd._internal.messages import shown
from minisd.errors import FileFormatError, InputError, IntegrityError, MismatchError, OutOfMemory
from weights_loader.formats.checkpoint import read_checkpoint
from weights_loader.formats.contents import Contents, check_name
from weights_loader.formats.safetensors import MAX_HEADER, read_safetensors

Format = Literal["safetensors", "pickle"]
FORMAT_NAMES: dict[Format, str] = {"safetensors": "a safetensors file", "pickle": "a PyTorch checkpoint"}
SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors",
    ".sft": "safetensors",
    ".ckpt": "pickle",
    ".bin": "pickle",
    ".pt": "pickle",
    ".pth": "pickle",
}
WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile
# A tensor of every model in the original layout: what stands before its name is a wrapper's prefix.
ANCHOR = "model.diffusion_model.input_blocks.0.0.weight"
OTHER_FORMATS = {  # by their first bytes
    b"\x1f\x8b": "a gzip archive: unpack it first (gunzip)",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"RIFF": "a WebP image or a sound",
    b"%PDF": "a PDF document",
    b"GGUF": "a GGUF model, which is quantized: get the .safetensors of this model",
    b"\x89HDF": "an HDF5 file (Keras?): get the .safetensors of this model",
    b"\x93NUMPY": "a NumPy array",
}


class WeightFile:
    """An open weight file: its names, shapes and dtypes are known, its tensors are mapped.

    Attributes:
        path: the file.
        format: "safetensors" or "pickle", by the content of the file and not by its name.
        shapes, dtypes: of every tensor, by name.
        metadata: of the header (safetensors), or the plain values beside the weights (pickle: `global_step`).
        prefix: a wrapper's prefix ("module.", "state_dict.") that was removed from the names that have it, or "".
        notices: one sentence for each fact that a person may want to know.
    """

    def __init__(self, path: Path, format: Format, contents: Contents, file: BinaryIO) -> None:
        self.path = path
        self.format = format
        self.metadata = contents.metadata
        self.notices = contents.notices
        self._mapped = contents.mapped
        self.prefix = _common_prefix(list(contents.tensors))
        self._tensors = {name.removeprefix(self.prefix): tensor for name, tensor in contents.tensors.items()}
        self._size = file.seek(0, 2)
        self._first_byte = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)  # tells the size of the file later
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}
        if self.prefix:
            self.notices.append(f"The prefix {shown(self.prefix)} was removed from the tensors' names.")
        if tiny := sum(dtype.is_floating_point and dtype.itemsize == 1 for dtype in self.dtypes.values()):
            self.notices.append(f"{tiny} tensors are stored in float8, which keeps about one digit of each number.")
        if SUFFIXES.get(path.suffix.lower(), format) != format:
            self.notices.append(f"{path.name} is {FORMAT_NAMES[format]}, although its name says otherwise.")

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, a view of the mapped file: its bytes are read when they are used.

        Writing into it changes memory only, never the file. It is a copy where an old file stores it at an address
        that its dtype cannot use.

        Raises: InputError (no such name), IntegrityError (the size of the file has changed since it was opened).
        """
        if name not in self._tensors:
            raise InputError(f"{self.path} has no tensor {shown(name)}; `.shapes` lists its tensors.")
        if self._first_byte.size() != self._size:  # reading a page that is gone would end the process
            raise IntegrityError(
                f"{self.path} had {self._size:,} bytes when it was opened and has {self._first_byte.size():,} now: "
                "another program is writing it; open it again later."
            )
        tensor = self._tensors[name].detach()
        return tensor if tensor.data_ptr() % tensor.dtype.itemsize == 0 else tensor.clone()

    def forget(self) -> None:
        """Free the memory of what was read; it is read again when it is used. Not for tensors that were written to."""
        if self._mapped is not None and sys.platform == "linux":
            self._mapped.madvise(mmap.MADV_DONTNEED)


def computable(tensor: torch.Tensor) -> torch.Tensor:
    """A float8 tensor in float32, because PyTorch stores float8 but hardly computes with it; any other as it is."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def open_weights(path: str | Path) -> WeightFile:
    """Open a .safetensors, .ckpt, .bin or .pt file.

    Raises: InputError (no such file), FileFormatError (not a weight file), IntegrityError (incomplete),
    UnsafeFileError (would run code, or is built to harm), MismatchError (no tensors, or special ones), OutOfMemory
    (the file cannot be mapped).
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode  # before opening: opening a pipe would wait, a device may act
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)[:200]!r}: no such file ({_reason(error)}); check the path.") from None
    if stat.S_ISDIR(mode):
        raise FileFormatError(f"{path} is a folder, expected a weight file; name the file inside it.")
    if not stat.S_ISREG(mode):
        raise FileFormatError(f"{path} is a pipe, socket or device, expected a regular file.")
    try:
        with path.open("rb") as file:
            format = _detect_format(file.read(512), path)
            _check_memory(file, path)
            file.seek(0)
            contents = read_safetensors(path) if format == "safetensors" else read_checkpoint(file, path)
            for name in contents.tensors:
                check_name(name, path)
            if not contents.tensors:
                raise MismatchError(f"{path} is {FORMAT_NAMES[format]} without any tensor; expected weights.")
            return WeightFile(path, format, contents, file)
    except PermissionError as error:
        raise FileFormatError(f"{path} cannot be read ({_reason(error)}); check its permissions.") from None


def _detect_format(head: bytes, path: Path) -> Format:
    """The format of a file by its first bytes; FileFormatError names known files that are not weights."""
    if len(head) < 8:
        raise FileFormatError(f"{path} has {len(head)} bytes, too few for a weight file; download it again.")
    if head.startswith(b"version https://git-lfs"):
        digits = head.partition(b"\nsize ")[2].partition(b"\n")[0]
        size = f" of {int(digits) / 1e9:.2f} GB" if digits.isdigit() else ""
        raise FileFormatError(
            f"{path} is a Git LFS pointer to a file{size}, not the file itself; run `git lfs pull` in its folder."
        )
    if 0 < int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8:].lstrip().startswith(b"{"):
        return "safetensors"
    for magic, what in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise FileFormatError(f"{path} is {what}; expected a .safetensors or .ckpt file.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<!", b"<html", b"<HTML", b"<?xml", b"<head")):
        raise FileFormatError(
            f"{path} is a web page, probably of a login or an error, and not a weight file; download it again."
        )
    if text.startswith((b"{", b"[")):  # no pickle begins like this
        raise FileFormatError(
            f"{path} is JSON text ({shown(text[:40].decode('utf-8', 'replace'))}), not a weight file; name the "
            ".safetensors file in its folder."
        )
    if SUFFIXES.get(path.suffix.lower()) == "safetensors" and not head.startswith((b"PK\x03\x04", b"\x80")):
        raise FileFormatError(f"{path} does not begin with the header of a safetensors file; download it again.")
    return "pickle"


def _check_memory(file: BinaryIO, path: Path) -> None:
    try:
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY).close()
    except OSError as error:
        raise OutOfMemory(
            f"{path} needs {file.seek(0, 2):,} bytes of address space ({_reason(error)}); free some memory first."
        ) from None


def _common_prefix(names: list[str]) -> str:
    """The prefixes of wrappers that all names have, outermost first; in a whole model, whatever comes before."""
    prefix = ""
    while found := [each for each in WRAPPERS if all(name.startswith(prefix + each) for name in names)]:
        prefix += found[0]
    wrapped = next((name for name in names if name.endswith(f".{ANCHOR}")), None)
    return prefix if wrapped is None or ANCHOR in names else wrapped.removesuffix(ANCHOR)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
