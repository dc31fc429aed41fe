"""A pickle is a program for a small stack machine; this is such a machine in which nothing can be called.

A global is only its name; a call of one of the few that rebuild tensors becomes a record of where the tensor lies, any
other an inert stub.
"""

import io
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minisd.errors import FileFormatError, MinisdError, UnsafeFileError
from weights_loader.formats.safetensors_header import DTYPES, MAX_NAME, shown
from weights_loader.formats.zip_archive import RECIPE

MAX_OPCODES = 2_000_000  # of which a tensor takes about 30

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
    """A strided view of a storage, as the pickle claims it; checked where it is collected."""

    storage: Storage
    dtype: torch.dtype
    offset: Any
    shape: Any
    stride: Any


def unpickle(stream: io.BytesIO, storages: dict[str, Storage], path: Path) -> Any:
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
        case ("storage", Global(kind), str() as name, _, int() as count, *view) if view in ([], [None]) and count >= 0:
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
