"""Write files so that a reader finds the old one or the new one, whole, whatever happens in between.

A new file is written beside its target under another name, forced to the disk, checked, then renamed.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from minisd.errors import FileFormatError, InputError, MinisdError, OutputError
from weights_loader.safetensors_file import DTYPES, MAX_HEADER, check_name, read_header, shown

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
        raise OutputError(
            f"{path} needs {needed:,} bytes, {free:,} are free there; make room, or choose another."
        )

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


def write_json(obj: Any, path: str | Path, overwrite: bool = False) -> None:
    """Write an object as indented UTF-8 JSON.

    Raises: InputError (no JSON value: NaN counts as none), OutputError (the target cannot be written).
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        raw = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: this object cannot be written as JSON ({error}).") from None
    write_atomically(path, lambda file: file.write(raw), overwrite)


def write_atomically(
    path: str | Path,
    write: Callable[[BinaryIO], object],
    overwrite: bool = False,
    check: Callable[[BinaryIO], object] | None = None,
) -> None:
    """Create or replace a file by what `write` writes into an open binary file.

    `check` may read what was written back and raise; then, as after any failure, the target is as it was and
    nothing else is left in its folder. The mode is that of the file replaced, or of any new file (umask).

    Raises: OutputError; what `write` or `check` raises that is no OSError passes through.
    """
    path = Path(path)
    check_target(path, overwrite)
    _sweep(path.parent)
    temporary = path.parent / f"{_prefix()}{os.getpid()}-{secrets.token_hex(6)}.tmp"
    try:
        with _removed_on_failure(temporary):
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                with open(temporary, "rb") as file:
                    check(file)
            if path.exists():
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            check_target(path, overwrite)  # somebody may have been faster
            os.replace(temporary, path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} could not be written ({error.strerror or error}); what was there before is untouched."
        ) from error
    _sync_folder(path.parent)


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Raise OutputError, before any work, where `write_atomically` could not or should not write."""
    path = Path(path)
    try:
        parent = path.parent.stat()
        try:
            target = path.lstat()
        except FileNotFoundError:
            target = None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{shown(path)} cannot be written ({reason}); check its folder and its name."
        ) from None
    if not stat.S_ISDIR(parent.st_mode):
        raise OutputError(f"{path} cannot be written: {path.parent} is no folder.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: its folder is read-only; choose another.")
    if target is None:
        return
    if not stat.S_ISREG(target.st_mode):
        what = "folder" if stat.S_ISDIR(target.st_mode) else "link, pipe or device"
        raise OutputError(f"{path} is a {what}, expected a regular file or nothing; choose another name.")
    if not overwrite:
        raise OutputError(f"{path} exists already; choose another name, or allow it to be overwritten.")


def _header(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path
) -> tuple[bytes, list[str]]:
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
        raise InputError(
            f"{path}: names and metadata take {len(header):,} bytes, allowed are {MAX_HEADER:,}."
        )
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
        raise InputError(
            f"{path}: tensor {shown(name)} has no plain data (sparse or meta); expected a dense one."
        )


def _prefix() -> str:
    """How the temporary files of this machine begin; the process id follows."""
    return f".minisd-{re.sub('[^A-Za-z0-9]', '', socket.gethostname())[:40]}-"


def _sweep(folder: Path) -> None:
    """Remove what processes of this machine that were killed while writing have left in the folder."""
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return
    for leftover in folder.glob(f"{_prefix()}*.tmp"):
        pid = leftover.name.removeprefix(_prefix()).partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is someone else's
        return True
    return True


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C too
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the file system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
