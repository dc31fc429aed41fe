"""The globals (classes and functions) that a pickle names, found without running it.

torch's safe unpickler calls only the globals that it knows, and those that it is given: here, inert classes.
"""

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, BinaryIO

from minisd._internal.messages import shown
from minisd.errors import FileFormatError, MinisdError, MismatchError, UnsafeFileError

RECIPE = "get the .safetensors of this model, or save it again with torch.save(model.state_dict(), path)"
MAX_OPCODES = 2_000_000  # a tensor takes about 30
MAX_GLOBALS = 1000
MAX_NESTED = 10_000  # tuples in one tuple; Python overflows its stack when it hashes a deeper one as a key
# No weights need these. torch would call none of them but bytearray (of any size); the refusal tells what the file is.
UNSAFE = re.compile(
    r"""( os | posix | nt | sys | subprocess | _posixsubprocess | shutil | _?socket | importlib | imp | runpy
        | pkgutil | zipimport | marshal | _?pickle | cPickle | cloudpickle | dill | joblib | code | codeop | pty | pdb
        | bdb | c?[pP]rofile | trace | timeit | doctest | _?ctypes | cffi | multiprocessing | asyncio | webbrowser
        | http | urllib | requests | httpx | aiohttp | ftplib | smtplib | telnetlib | pip | setuptools | distutils
        | ensurepip | venv | idlelib | lib2to3 | _?operator | _?io\.(open|FileIO) | types\.(FunctionType|CodeType)
        | numpy\.(load|f2py|distutils|testing)
        | torch\.(load|serialization\.load|storage\._load_from_bytes|hub|jit|package|fx|_inductor|_dynamo
                  |utils\.cpp_extension|utils\.bottleneck|distributed\.rpc)
        | builtins\.(?!(object|set|frozenset|list|dict|tuple|int|float|complex|bool|str|bytes|slice|range|type)$)[^.]*
        )(\.|$)""",
    re.VERBOSE,
)
SPECIAL_TENSORS = re.compile(r"torch\.(_utils\._rebuild_(?!tensor|parameter)|sparse\.)")


class Stub:
    """An inert object in place of an instance of a foreign class; it keeps its state.

    Where the pickle adds items to the instance, it is a plain `container`: torch adds items to no other.
    """

    state: Any = None
    container: type | None = None

    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls) if cls.container is None else cls.container()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def find_globals(stream: BinaryIO, path: Path) -> dict[str, type[Stub]]:
    """The names of all globals in the next pickle of the stream, each with an inert class for it.

    Raises: UnsafeFileError (a global that no weights need, or a pickle that is built to harm), MismatchError (special
    tensors), FileFormatError (not a pickle).
    """
    try:
        containers = _follow(stream, path)
    except MinisdError:
        raise
    except Exception:  # damaged pickles fail in many ways
        raise FileFormatError(
            f"{path} is neither a safetensors file nor a PyTorch checkpoint; download it again."
        ) from None
    if special := next(filter(SPECIAL_TENSORS.match, containers), None):
        raise MismatchError(f"{path} contains tensors of a special kind ({shown(special)}); expected plain dense ones.")
    return {name: type(name, (Stub,), {"container": container}) for name, container in containers.items()}


def _follow(stream: BinaryIO, path: Path) -> dict[str, type | None]:
    """The globals of a pickle, each with the kind of container that its instances are used as.

    It follows the pickle's stack, but builds nothing: an entry is the name of the global that makes the object, or the
    number of tuples in it.
    """
    containers: dict[str, type | None] = {}
    stack: list[str | int] = []
    marks: list[int] = []
    memo: dict[int, str | int] = {}
    protocol = 0
    texts: deque[str] = deque(maxlen=2)
    arg: Any
    for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_OPCODES or len(containers) > MAX_GLOBALS:
            raise UnsafeFileError(
                f"{path} is a pickle of {count:,} steps and {len(containers):,} globals, too many; {RECIPE}."
            )
        operands = opcode.stack_before
        start = len(stack) - len(operands)
        if pickletools.markobject in operands:
            start = marks.pop() - operands.index(pickletools.markobject)
        taken = stack[max(start, 0) :]
        del stack[max(start, 0) :]
        made: str | int = 0
        match opcode.name:
            case "PROTO":
                protocol = arg
            case "SHORT_BINUNICODE" | "BINUNICODE":
                texts.append(arg)
            case "STACK_GLOBAL":  # of protocol 4: its name is usually the two texts before it
                _full_name(" ".join(texts), path)
            case "GLOBAL" | "INST":
                made = _full_name(arg, path)
                containers.setdefault(made, None)
            case "MARK":
                marks.append(len(stack))
                continue
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                made = memo.get(arg, 0)
            case "REDUCE" | "NEWOBJ" | "BUILD":
                made = taken[0]
            case "SETITEM" | "SETITEMS" | "APPEND" | "APPENDS":
                made = taken[0]
                if isinstance(made, str):
                    containers[made] = OrderedDict if "SETITEM" in opcode.name else list
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                made = 1 + sum(entry for entry in taken if isinstance(entry, int))
                if made > MAX_NESTED:
                    raise UnsafeFileError(f"{path} is a pickle of more than {MAX_NESTED:,} nested tuples; {RECIPE}.")
        stack += [made] * len(opcode.stack_after)
    if protocol > 3:
        raise UnsafeFileError(f"{path} is a pickle of protocol {protocol}, which PyTorch cannot load safely; {RECIPE}.")
    return containers


def _full_name(arg: str, path: Path) -> str:
    """The name of a global with its module, as Python 3 spells it; UnsafeFileError for one that no weights need."""
    module, _, name = arg.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if UNSAFE.match(full):
        raise UnsafeFileError(
            f"{path} would call {shown(full)}, which no weights need; nothing was run: do not open this file with "
            "other software, get the .safetensors of this model."
        )
    return full
