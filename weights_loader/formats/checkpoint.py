"""Read PyTorch checkpoints (.ckpt .bin .pt) with torch's own safe unpickler, `torch.load(weights_only=True)`.

torch.save writes a pickle, and the bytes of the tensors: in a zip archive, or before PyTorch 1.6 after the pickle. The
classes and functions that the pickle names are listed first: what no weights need is refused, and what torch does not
know is replaced by an inert class. So nothing in the file is executed.
"""

import io
import pickle
import threading
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import torch

from minisd._internal.messages import shown
from minisd.errors import FileFormatError, IntegrityError, MinisdError, MismatchError, UnsafeFileError
from weights_loader.formats.contents import ONLY_TENSOR, Contents
from weights_loader.formats.pickle_globals import RECIPE, Stub, find_globals

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[2:]  # the first object of the older format, after the protocol

DICTS_OF_WEIGHTS = ("state_dict", "model", "model_state_dict", "module", "weights", "params")
MOST_WRAPPERS = 5  # one within another

_lock = threading.Lock()  # torch has one list of safe globals for all threads


def read_checkpoint(file: BinaryIO, path: Path) -> Contents:
    """Read the tensors of an open checkpoint: mapped, or copied if the file has the older format.

    Raises: UnsafeFileError (would run programs, or was not written by torch.save), FileFormatError (not a checkpoint
    of weights), IntegrityError (damaged or incomplete), MismatchError (tensors that are not plain and dense).
    """
    zipped = file.read(4) == b"PK\x03\x04"
    try:
        stubs, sizes = _inspect_archive(file, path) if zipped else (_inspect_legacy(file, path), None)
        file.seek(0)
        with (
            _lock,
            torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()]),
            warnings.catch_warnings(action="ignore"),  # about pickle protocol 3
        ):
            # torch.load reads every file of this name as a safetensors file
            mapped = zipped and path.suffix != ".safetensors"
            value = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        if not zipped and (rest := path.stat().st_size - file.tell()) > 0:
            raise IntegrityError(f"{path} has {rest:,} bytes after the last tensor: it is damaged; download it again.")
        return _collect(value, sizes, path)
    except MinisdError:
        raise
    except pickle.UnpicklingError:  # its text recommends to load without safety
        raise UnsafeFileError(f"{path} contains objects that PyTorch cannot load safely; {RECIPE}.") from None
    except zipfile.BadZipFile:
        raise IntegrityError(
            f"{path} is an incomplete download, or a damaged zip archive; download it again."
        ) from None
    except Exception:  # torch raises many kinds
        raise IntegrityError(
            f"{path} is a damaged checkpoint: its tensors do not fit the data in the file; download it again."
        ) from None


def _inspect_archive(file: BinaryIO, path: Path) -> tuple[dict[str, type[Stub]], Counter[int]]:
    """The globals of the pickle in a zip archive, and how many members have each size; some are tensors' data."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any("/code/" in name or name.endswith(("/constants.pkl", "/archive_format")) for name in names):
            raise UnsafeFileError(f"{path} is a program (TorchScript or torch.export), not weights; {RECIPE}.")
        pickles = [member for member in members if member.filename.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise FileFormatError(f"{path} is a zip archive, but not a PyTorch checkpoint; unpack it first.")
        if (
            any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members)
            or len(set(names)) < len(names)
            or sum(member.file_size for member in members) > file.seek(0, io.SEEK_END)
        ):
            raise UnsafeFileError(
                f"{path} has compressed, encrypted, repeated or overlapping members, which torch.save never writes; "
                f"{RECIPE}."
            )
        _check_places(file, archive, path)
        if pickles[0].CRC == 0:  # written after torch.serialization.set_crc32_options(False)
            del pickles[0].CRC
        stubs = find_globals(io.BytesIO(archive.read(pickles[0])), path)
    return stubs, Counter(member.file_size for member in members)


def _check_places(file: BinaryIO, archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive whose members are not where its directory says: torch would map other bytes as data.

    Before each member stand a header, its name and padding; it ends at the next header, or at a descriptor (PK 7 8).
    """
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    ends = [member.header_offset for member in members[1:]] + [archive.start_dir]
    for member, end in zip(members, ends, strict=True):
        file.seek(member.header_offset)
        header = file.read(30)
        name_length, padding = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        name = file.read(name_length)
        file.seek(member.header_offset + 30 + name_length + padding + member.file_size)
        rest = file.read(4) if end > file.tell() else b""
        fits = file.tell() <= end and rest in (b"", b"PK\x07\x08")
        known = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")
        if header[:4] != b"PK\x03\x04" or name != known or not fits:
            raise IntegrityError(f"{path} is a damaged zip archive: {shown(member.filename)} is not in its place.")


def _inspect_legacy(file: BinaryIO, path: Path) -> dict[str, type[Stub]]:
    """The globals of the five pickles of the older format: magic number, version, system, value, storage keys."""
    file.seek(2)
    magic = file.read(len(LEGACY_MAGIC))
    file.seek(0)
    stubs = find_globals(file, path)
    if magic != LEGACY_MAGIC:
        raise UnsafeFileError(f"{path} is a pickle that torch.save did not write; {RECIPE}.")
    for _ in range(4):
        stubs |= find_globals(file, path)
    return stubs


def _collect(value: Any, sizes: Counter[int] | None, path: Path) -> Contents:
    """The tensors of a dict, of a wrapper such as `state_dict` in it, of a list, or of the dicts in a dict.

    A tensor alone gets a name.
    """
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, Stub):
        raise UnsafeFileError(f"{path} is a pickled object of {shown(kind.__name__)}, not a dict of tensors; {RECIPE}.")
    if isinstance(value, torch.Tensor):
        value = {ONLY_TENSOR: value}
    if isinstance(value, list | tuple):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} contains a {kind.__name__}, expected a dict of tensors; {RECIPE}.")
    value, others = _unwrap(value)
    weights = value
    if not _has_tensors(value):
        weights, more = _flatten(value)
        others |= more
    tensors = {}
    for name, item in weights.items():
        if isinstance(name, str) and isinstance(item, torch.Tensor):
            _check_tensor(name, item, path)
            tensors[name] = item
        else:
            others[name] = item
    if sizes is not None:
        _check_storages(tensors, sizes, path)
    return Contents(tensors, *_describe(others))


def _has_tensors(value: dict[Any, Any]) -> bool:
    return any(isinstance(item, torch.Tensor) for item in value.values())


def _unwrap(value: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The innermost dict in `state_dict` or another wrapper, in any depth, and the entries beside it."""
    others: dict[Any, Any] = {}
    for _ in range(MOST_WRAPPERS):
        inner = next((key for key in DICTS_OF_WEIGHTS if isinstance(value.get(key), dict) and value[key]), None)
        if inner is None or (inner != "state_dict" and _has_tensors(value)):
            break
        others |= {key: item for key, item in value.items() if key != inner}
        value = value[inner]
    return value, others


def _flatten(value: dict[Any, Any]) -> tuple[dict[str, torch.Tensor], dict[Any, Any]]:
    """The tensors of the dicts (or nn.ParameterDicts) in a dict as "outer.inner", and the other entries."""
    found = {}
    others = {}
    seen = set()  # one dict under very many names would take too much memory
    for outer, item in value.items():
        inner = item.state.get("_parameters") if isinstance(item, Stub) and isinstance(item.state, dict) else item
        if not isinstance(outer, str) or not isinstance(inner, dict) or id(inner) in seen:
            others[outer] = item
            continue
        seen.add(id(inner))
        for name, leaf in inner.items():
            if isinstance(name, str) and isinstance(leaf, torch.Tensor):
                found[f"{outer}.{name}"] = leaf
    return found, others


def _describe(others: dict[Any, Any]) -> tuple[dict[str, str], list[str]]:
    """The entries that are not weights: plain values as metadata, and one notice about all of them."""
    plain = {
        key: str(item) for key, item in others.items() if isinstance(key, str) and isinstance(item, str | int | float)
    }
    names = ", ".join(shown(key.__name__ if isinstance(key, type) else key) for key in list(others)[:5])
    more = ", ..." if len(others) > 5 else ""
    notices = [f"Entries that are not weights ({len(others)}) were not loaded: {names}{more}."] if others else []
    return plain, notices


def _check_tensor(name: str, tensor: torch.Tensor, path: Path) -> None:
    """Refuse a tensor that is not plain, or that repeats its elements."""
    where = f"{path}: tensor {shown(name)}"
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        raise MismatchError(f"{where} is of a special kind (quantized, or a lazy conjugate); expected a plain one.")
    reach = 0  # the last element that the dimensions so far can touch
    for step, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1 and step <= reach and tensor.numel():
            raise MismatchError(
                f"{where} (shape {shown(tuple(tensor.shape))}, stride {shown(tensor.stride())}) repeats its elements; "
                "save it again after .contiguous()."
            )
        reach += max(n - 1, 0) * step


def _check_storages(tensors: dict[str, torch.Tensor], sizes: Counter[int], path: Path) -> None:
    """Refuse data that are not as long as a member of the archive of their own: torch reads on into the next one."""
    storages = {each.data_ptr(): each.nbytes() for each in (item.untyped_storage() for item in tensors.values())}
    lacking = Counter(storages.values()) - sizes
    for name, tensor in tensors.items():
        if tensor.untyped_storage().nbytes() in lacking:
            raise IntegrityError(f"{path}: tensor {shown(name)} does not fit the data in the file; download it again.")
