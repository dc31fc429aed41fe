"""PyTorch checkpoints (.ckpt .bin .pt), read without executing anything.

torch.save writes a pickle, which is a program for a small stack machine, and beside it the tensors' bytes.
`_run` is such a machine with one difference: nothing in it can be called. A global is only its name; a call
of one of the few that rebuild tensors becomes a record of where the tensor lies, any other an inert stub.
"""

import io
import math
import pickletools
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from minisd.errors import FileFormatError, IntegrityError, MinisdError, MismatchError, UnsafeFileError
from weights_loader.safetensors_file import DTYPES, MAX_NAME, Contents, TensorSpec, check_name, shown

MAX_PICKLE = 2**25  # bytes; SD 1.5 with EMA and training state takes less than one million
MAX_OPCODES = 2_000_000  # of which a tensor takes about 30
MAX_MEMBERS = 100_000  # of the zip archive: one a storage
RECIPE = "get the .safetensors of this model, or save it again with torch.save(model.state_dict(), path)"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of files that torch.save wrote before version 1.6

STORAGE_TYPES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QUInt8": torch.quint8,  # quantized: refused later, by the name of the tensor
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "storage.Untyped": torch.uint8,
}
DTYPE_OF_GLOBAL = {str(dtype): dtype for dtype in [*DTYPES.values(), torch.complex128]} | {
    f"torch.{kind}Storage": dtype for kind, dtype in STORAGE_TYPES.items()
}
# Names that no checkpoint needs and only an attack, or a saved program, mentions. Nothing here would be
# called either: refusing them says aloud what the file is.
EXECUTABLE = re.compile(
    r"""( os | posix | nt | sys | subprocess | _posixsubprocess | shutil | _?socket | importlib | imp | runpy
        | pkgutil | zipimport | marshal | _?pickle | cPickle | cloudpickle | dill | joblib | code | codeop
        | pty | pdb | bdb | c?[pP]rofile | trace | timeit | doctest | _?ctypes | cffi | multiprocessing
        | asyncio | webbrowser | commands | popen2 | http | urllib2? | requests | httpx | aiohttp | ftplib
        | smtplib | telnetlib | pip | setuptools | distutils | ensurepip | venv | idlelib | lib2to3
        | _?operator | _?io\.(open|FileIO) | types\.(FunctionType|CodeType)
        | numpy\.(load|f2py|distutils|testing)
        | torch\.(load|serialization\.load|storage\._load_from_bytes|hub|jit|package|fx|_inductor|_dynamo
                  |utils\.cpp_extension|utils\.bottleneck|distributed\.rpc)
        | (builtins|__builtin__)\.(?!(object|set|frozenset|list|dict|tuple|int|float|complex|bool|str|bytes
            |bytearray|slice|range|type|unicode|long|basestring|Ellipsis|NotImplemented)$)[^.]*
        )(\.|$)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Global:
    """The name of a class or function, which is never looked up."""

    name: str


@dataclass(repr=False)
class Stub:
    """An object that the pickle would have built by calling `name`."""

    name: str
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """`count` elements of raw memory, kept beside the pickle under `key`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, repr=False)
class StoredTensor:
    """A strided view of a storage, as the pickle claims it; checked in `_check_view`."""

    storage: Storage
    dtype: torch.dtype
    offset: Any
    shape: Any
    stride: Any


class Member(NamedTuple):
    """A file in the zip archive: its local header lies at `offset`, its last byte before `limit`."""

    offset: int
    size: int
    crc: int
    limit: int


def read_zip(file: BinaryIO, size: int, path: Path) -> Contents:
    """Read the directory and the pickle of a checkpoint in the zip format of torch.save.

    Raises: UnsafeFileError (executable, or built to harm), FileFormatError, IntegrityError, MismatchError.
    """
    members = _directory(file, size, path)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise FileFormatError(f"{path} is a zip archive, but not of a PyTorch checkpoint; unpack it first.")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = root + "byteorder"  # absent from files of PyTorch 1
    if byteorder in members and _read(file, byteorder, members[byteorder], path) != b"little":
        raise FileFormatError(f"{path} was written on a big-endian machine; {RECIPE}.")
    value = _unpickle(io.BytesIO(_read(file, pickles[0], members[pickles[0]], path)), {}, path)

    def locate(storage: Storage) -> int:
        name = f"{root}data/{storage.key}"
        if name not in members or members[name].size < storage.count * storage.dtype.itemsize:
            raise IntegrityError(f"{path} lacks the data of storage {shown(storage.key)}; download it again.")
        return _start(file, name, members[name], path)

    return _collect(value, locate, path)


def read_legacy(file: BinaryIO, size: int, path: Path) -> Contents:
    """Read a checkpoint in the older format of torch.save: five pickles, then the storages one after another.

    Raises: as `read_zip`; UnsafeFileError also for a pickle that torch.save did not write.
    """
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE))
    storages: dict[str, Storage] = {}
    if _unpickle(stream, storages, path) != LEGACY_MAGIC:
        raise UnsafeFileError(f"{path} is a raw pickle that torch.save did not write; {RECIPE}.")
    _version, system, value, keys = (_unpickle(stream, storages, path) for _ in range(4))
    if not (isinstance(system, dict) and system.get("little_endian") is True and isinstance(keys, list)):
        raise FileFormatError(f"{path} is a damaged or big-endian checkpoint; {RECIPE}.")
    places: dict[str, int] = {}
    position = stream.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        if not isinstance(key, str) or key not in storages or storages[key].count != count:
            raise IntegrityError(
                f"{path}: storage {shown(key)} is not where it should be; download it again."
            )
        places[key] = position + 8
        position += 8 + count * storages[key].dtype.itemsize
    if position != size or places.keys() != storages.keys():
        raise IntegrityError(f"{path} should end after {position:,} bytes, has {size:,}; download it again.")

    def locate(storage: Storage) -> int:
        if storages[storage.key] != storage:
            raise FileFormatError(f"{path} contradicts itself about storage {shown(storage.key)}; {RECIPE}.")
        return places[storage.key]

    return _collect(value, locate, path)


# The zip archive.


def _directory(file: BinaryIO, size: int, path: Path) -> dict[str, Member]:
    """The central directory, checked before anything that it points to is read (PKWARE APPNOTE, 4.3)."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b"\0")
    if not tail[-22:].startswith(b"PK\x05\x06"):
        raise IntegrityError(
            f"{path} does not end as a zip archive does: an incomplete download; download it again."
        )
    count, length, start = struct.unpack("<10xHII2x", tail[-22:])
    end = size - 22
    if tail[-42:].startswith(b"PK\x06\x07") and tail.startswith(b"PK\x06\x06"):  # zip64
        count, length, start = struct.unpack("<32xQQQ", tail[:56])
        end = size - 98
    if count > MAX_MEMBERS or length > MAX_PICKLE:
        raise _hostile(path, f"lists {count:,} members in {length:,} bytes")
    if start + length != end:
        raise FileFormatError(
            f"{path}: the directory of the zip archive is not where it should be; download it again."
        )
    file.seek(start)
    raw = file.read(length)
    found = []
    at = 0
    try:
        for _ in range(count):
            fields = struct.unpack_from("<4s4xHH4xIIIHHH8xI", raw, at)
            mark, flags, method, crc, packed, unpacked, name_length, extra_length, comment_length, offset = (
                fields
            )
            name = raw[at + 46 : at + 46 + name_length].decode("utf-8")
            extra = raw[at + 46 + name_length :][:extra_length]
            unpacked, packed, offset = _widen(extra, unpacked, packed, offset)
            if mark != b"PK\x01\x02":
                raise ValueError("no entry")
            _refuse_program(name, path)
            if flags & ~0x808 or method != 0 or packed != unpacked:
                raise _hostile(path, f"has a compressed, encrypted or odd member {shown(name)}")
            found.append((offset, 30 + name_length + packed, packed, crc, name))
            at += 46 + name_length + extra_length + comment_length
    except (struct.error, ValueError) as error:
        if isinstance(error, MinisdError):
            raise
        raise FileFormatError(
            f"{path}: the directory of the zip archive is damaged; download it again."
        ) from None
    found.sort()
    limits = [offset for offset, *_ in found[1:]] + [start]
    if any(offset + total > limit for (offset, total, *_), limit in zip(found, limits, strict=True)):
        raise _hostile(path, "has members that overlap or lie outside of it")
    members = {
        name: Member(offset, length, crc, limit)
        for (offset, _, length, crc, name), limit in zip(found, limits, strict=True)
    }
    if len(members) < count or at != len(raw):
        raise _hostile(path, "lists a member twice, or hides something in its directory")
    return members


def _widen(extra: bytes, *values: int) -> tuple[int, ...]:
    """The 32-bit fields of a member; where one is saturated, its 64-bit value from the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return tuple(next(wide, value) if value == 0xFFFFFFFF else value for value in values)
        at += 4 + length
    return values


def _start(file: BinaryIO, name: str, member: Member, path: Path) -> int:
    """Where the bytes of a member begin: after its local header, which must agree with the directory."""
    file.seek(member.offset)
    mark, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    local_name = file.read(name_length)
    extra = file.read(extra_length)
    at = 0
    while at + 4 <= len(extra):  # a chain of (kind, length, bytes), which must end where it says
        at += 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
    start = member.offset + 30 + name_length + extra_length
    if (
        mark != b"PK\x03\x04"
        or local_name != name.encode()
        or at != extra_length
        or start + member.size > member.limit
    ):
        raise _hostile(path, f"contradicts its directory about {shown(name)}")
    return start


def _read(file: BinaryIO, name: str, member: Member, path: Path) -> bytes:
    if member.size > MAX_PICKLE:
        raise _hostile(path, f"has a pickle of {member.size:,} bytes, expected at most {MAX_PICKLE:,}")
    file.seek(_start(file, name, member, path))
    raw = file.read(member.size)
    if member.crc not in (0, zlib.crc32(raw)):  # torch.serialization.set_crc32_options(False) writes 0
        raise IntegrityError(
            f"{path}: {shown(name)} inside is damaged (its CRC is wrong); download it again."
        )
    return raw


def _refuse_program(name: str, path: Path) -> None:
    parts = name.split("/")
    if "code" in parts[1:2] or parts[-1] in ("constants.pkl", "archive_format"):
        raise UnsafeFileError(f"{path} is a program (TorchScript or torch.export: {shown(name)}); {RECIPE}.")


def _hostile(path: Path, what: str) -> UnsafeFileError:
    return UnsafeFileError(f"{path} {what}, which torch.save never writes; {RECIPE}.")


# The stack machine.


def _unpickle(stream: io.BytesIO, storages: dict[str, Storage], path: Path) -> Any:
    """Run one pickle of the stream; what it claims about storages is noted in `storages`."""
    try:
        return _run(stream, storages, path)
    except MinisdError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle trips over
        raise FileFormatError(
            f"{path} is neither a safetensors file nor a sound PyTorch checkpoint ({shown(str(error))}); "
            "download it again."
        ) from None


def _run(stream: io.BytesIO, storages: dict[str, Storage], path: Path) -> Any:
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each open mark
    memo: dict[int, Any] = {}
    arg: Any
    for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_OPCODES:
            raise UnsafeFileError(f"{path} holds a pickle of more than {MAX_OPCODES:,} steps; {RECIPE}.")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[arg])
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "LIST" | "FROZENSET":
                items, stack = stack, outer.pop()
                stack.append(tuple(items) if opcode.name == "TUPLE" else items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "GLOBAL":
                stack.append(_name(path, *arg.split(" ", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [_name(path, *stack[-2:])]
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storages, path))
            case "REDUCE" | "NEWOBJ":
                stack[-2:] = [_call(*stack[-2:])]
            case "NEWOBJ_EX":
                stack[-3:] = [_call(*stack[-3:-1])]
            case "INST":
                items, stack = stack, outer.pop()
                stack.append(_call(_name(path, *arg.split(" ", 1)), tuple(items)))
            case "OBJ":
                items, stack = stack, outer.pop()
                stack.append(_call(items[0], tuple(items[1:])))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Stub):
                    stack[-1].state = state
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "DICT":
                items, stack = stack, outer.pop()
                stack.append(_put({}, items))
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                _put(stack[-1], items)
            case "SETITEMS":
                items, stack = stack, outer.pop()
                _put(stack[-1], items)
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items, stack = stack, outer.pop()
                _extend(stack[-1], items)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "POP":
                stack.pop()
            case "POP_MARK":
                stack = outer.pop()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "EXT1" | "EXT2" | "EXT4" | "PERSID" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"opcode {opcode.name}")
            case _:  # what is left are numbers, texts and bytes
                if isinstance(arg, int) and arg.bit_length() > 1024:
                    raise ValueError("an integer of absurd size")
                stack.append(arg)


def _name(path: Path, module: Any, name: Any) -> Global:
    """The global as a name; UnsafeFileError when it is one of the executable kind."""
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
    if not 0 < len(full) <= MAX_NAME:
        raise ValueError("a global without a sensible name")
    inner = [name[match.end() :] for match in re.finditer(r"\.", name)]  # torch, "serialization.os.system"
    if any(EXECUTABLE.match(candidate) for candidate in [full, *([name] if inner else []), *inner]):
        raise UnsafeFileError(
            f"{path} wants to run {shown(full)}; nothing was run: do not open this file elsewhere, get the "
            ".safetensors of this model."
        )
    return Global(full)


def _storage(key: Any, storages: dict[str, Storage], path: Path) -> Storage:
    """The storage that a persistent id names: ("storage", type, key, device, count[, view])."""
    match key:
        case ("module", Global(name), *_):
            raise UnsafeFileError(f"{path} holds the pickled program of {shown(name)}; {RECIPE}.")
        case ("storage", Global(kind), str() as name, _, int() as count, *view) if (
            view in ([], [None]) and count >= 0
        ):
            storage = Storage(name, DTYPE_OF_GLOBAL[kind.replace("torch.cuda.", "torch.")], count)
            storages[name] = storage
            return storage
    raise ValueError("a persistent id that is no storage")


def _call(function: Any, args: Any) -> Any:
    """What takes the place of a call: a record, a plain container, or a stub."""
    match function, args:
        case Global(), tuple() if len(args) > 20:  # looking at them again and again would take long
            return Stub(function.name)
        case (
            Global("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor"),
            (Storage() as storage, offset, shape, stride, *rest),
        ):
            return _tensor(storage, storage.dtype, offset, shape, stride, rest[2:])
        case (
            Global("torch._utils._rebuild_tensor_v3"),
            (Storage() as storage, offset, shape, stride, _, _, Global(dtype), *rest),
        ):
            return _tensor(storage, DTYPE_OF_GLOBAL[dtype], offset, shape, stride, rest)
        case (
            Global("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state"),
            (tensor, *_),
        ):
            return tensor
        case (
            Global("torch._tensor._rebuild_from_type_v2"),
            (
                Global(inner),
                Global("torch.Tensor" | "torch.nn.parameter.Parameter"),
                tuple() as inner_args,
                _,
            ),
        ) if inner.startswith("torch._utils._rebuild_"):
            return _call(Global(inner), inner_args)  # a tensor with attributes of its own
        case Global("torch.Size"), (tuple() as shape,):
            return shape
        case (Global("collections.OrderedDict"), ()) | (Global("collections.defaultdict"), _):
            return {}
        case Global(name) | Stub(name), _:
            return Stub(name)
    raise ValueError("a call of what is no function")


def _tensor(
    storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any, rest: list[Any]
) -> StoredTensor | Stub:
    """A record of a plain tensor; one with lazy bits (conjugate, negative) in `rest` stays a stub."""
    if any(rest):
        return Stub("torch._utils._rebuild_lazy_tensor")
    return StoredTensor(storage, dtype, offset, shape, stride)


def _put(target: Any, items: list[Any]) -> Any:
    """Set key, value, key, value ... of a dict; tuples as keys are left out: hashing deep ones is fatal."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(target, dict) and isinstance(key, str | int | float | bytes | Global | None):
            target[key] = value
    return target


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


# From what the pickle built to tensors.


def _collect(value: Any, locate: Callable[[Storage], int], path: Path) -> Contents:
    """The tensors of a dict, of its `state_dict`, of a list, or of the dicts in a dict without tensors."""
    if isinstance(value, Stub | Global):
        raise UnsafeFileError(
            f"{path} is a pickled object of {shown(value.name)}, not a dict of tensors; {RECIPE}."
        )
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
            raise _hostile(path, f"names more than {MAX_MEMBERS:,} tensors")
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
        inner = (
            item.state.get("_parameters") if isinstance(item, Stub) and isinstance(item.state, dict) else item
        )
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
        key: str(item)
        for key, item in others.items()
        if isinstance(key, str) and isinstance(item, str | int | float)
    }
    names = ", ".join(shown(key.name if isinstance(key, Global) else key) for key in list(others)[:5])
    more = ", ..." if len(others) > 5 else ""
    notices = [f"{len(others)} entries beside the weights were not loaded: {names}{more}."] if others else []
    return plain, notices


def _check_view(
    name: str, item: StoredTensor | Stub, locate: Callable[[Storage], int], path: Path
) -> TensorSpec:
    """Where a tensor lies in the file; its view must stay in its storage and touch no element twice."""
    where = f"{path}: tensor {shown(name)}"
    if isinstance(item, Stub):
        kind = item.name.rpartition("._rebuild_")[2].replace("_", " ")
        raise MismatchError(f"{where} is of a special kind ({shown(kind)}); expected a plain dense tensor.")
    shape, stride, offset, storage = item.shape, item.stride, item.offset, item.storage
    if not (
        isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 64
    ) or not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *stride)):
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
        raise FileFormatError(
            f"{where} of shape {shown(shape)} reaches beyond its {available:,} stored elements."
        )
    return TensorSpec(item.dtype, shape, stride, locate(storage) + offset * item.dtype.itemsize)
