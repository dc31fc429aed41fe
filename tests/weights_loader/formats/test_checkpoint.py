"""PyTorch checkpoints: reference/reliability.md, F28-F33. Nothing in them is executed."""

import argparse
import datetime
import functools
import io
import os
import pickle
import re
import struct
import sys
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minisd.errors import FileFormatError, IntegrityError, MinisdError, MismatchError, UnsafeFileError
from weights_loader.formats import pickle_globals
from weights_loader.formats.contents import ONLY_TENSOR
from weights_loader.formats.weight_file import open_weights

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(6, 8, generator=GENERATOR)
DATA = BASE.numpy().tobytes()
TENSORS = {
    "a.weight": BASE,
    "a.transposed": BASE.T,
    "a.slice": BASE[1:5:2, 3:],
    "a.shared": BASE.view(48)[7:],
    "b.half": torch.randn(5, generator=GENERATOR).half(),
    "b.bfloat": torch.randn(2, 3, 1, 2, generator=GENERATOR).bfloat16(),
    "b.ids": torch.arange(7),
    "b.parameter": nn.Parameter(torch.randn(3, generator=GENERATOR)),
    "c.scalar": torch.tensor(0.5),
    "c.empty": torch.zeros(0, 4),
    "c.double": torch.randn(3, dtype=torch.float64, generator=GENERATOR),
    "c.complex": torch.randn(3, dtype=torch.complex64, generator=GENERATOR),
    "c.channels_last": torch.randn(2, 3, 4, 5, generator=GENERATOR).to(memory_format=torch.channels_last),
    "d.mask": torch.tensor([True, False]),
}
NEW_DTYPES = {"fp8": torch.ones(3).to(torch.float8_e5m2), "u16": torch.arange(9).to(torch.uint16)}


class Call:
    """Pickles as a call of `function`; ran by an unsafe reader, it would leave a canary."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.call = (function, args, state)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        return self.call


class ModelCheckpoint:
    """Stands for a Lightning callback."""

    def __init__(self) -> None:
        self.best = 1.5


def check_equal(path: Path, expected: dict[str, torch.Tensor]) -> None:
    file = open_weights(path)
    assert file.format == "pickle"
    assert set(file.shapes) == set(expected)
    for name, tensor in expected.items():
        got = file.tensor(name)
        tensor = tensor.detach()
        assert (got.dtype, got.shape, got.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), name
        assert got.contiguous().reshape(-1).view(torch.uint8).equal(tensor.contiguous().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
def test_positive(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "model.ckpt"
    tensors = TENSORS | (NEW_DTYPES if zipped else {})
    torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert all("float8" in notice for notice in open_weights(path).notices)
    check_equal(path, torch.load(path, weights_only=True))
    check_equal(path, tensors)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_new_protocols(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(TENSORS, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # the control: torch's safe unpickler reads none of them either
    with pytest.raises(UnsafeFileError, match=rf"protocol {protocol}, .*save it again"):
        open_weights(path)


def test_zero_copy(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "model.pt")
    file = open_weights(tmp_path / "model.pt")
    whole, shared = file.tensor("a.weight"), file.tensor("a.shared")
    assert shared.data_ptr() == whole.data_ptr() + 7 * 4
    whole.fill_(3)
    assert bool((shared == 3).all())
    check_equal(tmp_path / "model.pt", TENSORS)


def test_without_crc(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    check_equal(tmp_path / "model.pt", TENSORS)


def lightning() -> dict[str, Any]:
    """As training frameworks write it: the weights, and much that only they understand."""
    return {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(TENSORS),
        "callbacks": {ModelCheckpoint: {"best": np.float64(0.5), "monitor": None}, "x": ModelCheckpoint()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "hyper_parameters": argparse.Namespace(path=Path("a"), when=datetime.datetime(2022, 8, 10), rates={0.1, 0.2}),
        "counts": defaultdict(list, {"a": [np.arange(3), np.int64(3), b"bytes", slice(3), frozenset([1])]}),
        "loops": {(1, 2): Call(ModelCheckpoint), "big": 2**70, "complex": 1j, "dtype": torch.float16},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_lightning_checkpoint(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """F30: the tensors load, and none of the classes comes to life."""
    path = tmp_path / "model.ckpt"
    torch.save(lightning(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # the control: this is what stops others

    def alive(self: Any, *args: Any) -> None:
        raise AssertionError("a class of the checkpoint was used")

    monkeypatch.setattr(ModelCheckpoint, "__init__", alive)
    monkeypatch.setattr(ModelCheckpoint, "__setstate__", alive, raising=False)
    check_equal(path, TENSORS)
    file = open_weights(path)
    assert file.metadata == {"epoch": "3", "global_step": "470000", "pytorch-lightning_version": "1.4.2"}
    assert len(file.notices) == 1
    assert file.notices[0].startswith("Entries that are not weights (8) were not loaded: 'epoch', 'global_step'")


def test_other_wrappings(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    module = nn.BatchNorm1d(3)
    torch.save(module.state_dict(), path)  # carries `_metadata`
    check_equal(path, module.state_dict())
    torch.save({"model": module.state_dict(), "step": 1, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, path)
    check_equal(path, module.state_dict())  # `model` is a wrapper like `state_dict`
    torch.save([BASE, BASE[0]], path)
    check_equal(path, {"0": BASE, "1": BASE[0]})
    torch.save({"module.a": BASE, "module.b": BASE}, path)
    assert open_weights(path).prefix == "module."
    # textual inversion of AUTOMATIC1111
    parameters = nn.ParameterDict({"*": nn.Parameter(torch.ones(2, 768))})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": parameters, "name": "cat", "step": 7}, path)
    check_equal(path, {"string_to_param.*": torch.ones(2, 768)})
    assert open_weights(path).metadata == {"name": "cat", "step": "7"}
    # attributes on a tensor change how it is pickled
    plain, parameter = torch.ones(3), nn.Parameter(torch.zeros(3))
    plain.note = parameter.note = "x"  # type: ignore[attr-defined]
    torch.save({"a": plain, "b": parameter}, path)
    check_equal(path, {"a": torch.ones(3), "b": torch.zeros(3)})


class Box(dict):
    """Stands for a dict of a training framework, such as EasyDict."""


class Row(list):
    """Stands for a list of a training framework."""


def test_foreign_objects(tmp_path: Path) -> None:
    """Objects of any class and state load as inert ones; a checkpoint of a foreign dict class loads as a dict."""
    path = tmp_path / "model.pt"
    box, row = Box(lr=0.1, layers=(1, 2)), Row([1, Box(a=2)])
    box.frozen = True  # type: ignore[attr-defined]
    objects = {
        "box": box,
        "row": row,
        "array": np.arange(3.0),
        "slots": Call(ModelCheckpoint, state=(None, {"best": 2})),
        "number as state": Call(ModelCheckpoint, state=7),
        "nested": Call(ModelCheckpoint, Call(ModelCheckpoint, Box(x=ModelCheckpoint))),
        "partial": functools.partial(ModelCheckpoint, best=1),
        "module": nn.Linear(2, 3),
        "generator of names": Call(torch._utils._import_dotted_name, "os.system"),
        "places": {(1, (2, 3)): torch.device("cuda:0"), torch.Size([2]): torch.strided},
    }
    torch.save({"state_dict": {"a": BASE}} | objects, path)
    check_equal(path, {"a": BASE})
    torch.save(Box(a=BASE), path)
    check_equal(path, {"a": BASE})


def test_safe_globals_are_restored(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save(lightning(), tmp_path / "model.pt")
    open_weights(tmp_path / "model.pt")
    torch.save({"a": BASE, "x": Call(getattr, "", "upper")}, tmp_path / "bad.pt")
    with pytest.raises(UnsafeFileError):
        open_weights(tmp_path / "bad.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with ThreadPoolExecutor(8) as pool:
        for file in pool.map(open_weights, [tmp_path / "model.pt"] * 32):
            assert set(file.shapes) == set(TENSORS)


def test_official_embedding(shared_data: Path) -> None:
    path = shared_data / "learned_embeds.bin"
    check_equal(path, torch.load(path, weights_only=True))


MALICIOUS = [
    (os.system, "touch {canary}"),
    (os.mkdir, "{canary}"),
    (eval, "open({canary!r}, 'w')"),
    (exec, "open({canary!r}, 'w')"),
    (open, "{canary}", "w"),
    (getattr, "", "upper"),
    (__import__, "os"),
    (torch.load, "{canary}"),
    (torch.hub.load, "a", "b"),
    (pickle.loads, b"."),
    (io.FileIO, "{canary}", "w"),
    (np.load, "{canary}"),
    (__import__("subprocess").run, ["touch", "{canary}"]),
    (__import__("shutil").rmtree, "{canary}"),
    (__import__("runpy").run_path, "{canary}"),
    (__import__("importlib").import_module, "os"),
    (__import__("operator").methodcaller, "x"),
    (__import__("socket").create_connection, ("localhost", 1)),
    (torch.storage._load_from_bytes, b""),
    (torch.jit.load, "{canary}"),
    (functools.partial, os.system, "touch {canary}"),
    (print, Call(os.system, "true")),
]


@pytest.mark.parametrize("how", ["zip", "legacy", "raw"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("call", MALICIOUS, ids=lambda call: call[0].__name__)
def test_malicious(tmp_path: Path, call: tuple[Any, ...], protocol: int, how: str) -> None:
    """F29: wherever it hides beside good weights, it is named and not run."""
    canary = tmp_path / "canary"
    args = [arg.format(canary=str(canary)) if isinstance(arg, str) else arg for arg in call[1:]]
    args = [[part.format(canary=str(canary)) for part in arg] if isinstance(arg, list) else arg for arg in args]
    path = tmp_path / "model.ckpt"
    for content in [Call(call[0], *args), {"state_dict": TENSORS, "x": [Call(call[0], *args)]}]:
        if how == "raw":
            path.write_bytes(pickle.dumps(content, protocol))
        else:
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how == "zip")
        with pytest.raises(UnsafeFileError) as caught:
            open_weights(path)
        assert str(path) in str(caught.value)
        message = str(caught.value).replace(str(path), "")
        if how == "raw" and isinstance(content, dict):  # the functions that build its tensors come first
            assert "torch.storage._load_from_bytes" in message
        elif how == "legacy" and protocol == 4:  # the magic number before it is refused already
            assert "protocol 4" in message
        else:
            assert re.search(rf"\.({call[0].__name__}|system)'", message)
        assert "weights_only" not in str(caught.value)
        assert not canary.exists()


def test_malicious_by_hand(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    control = b"\x80\x02X\x01\x00\x00\x00a."
    assert pickle.loads(control) == "a"
    path = tmp_path / "model.pt"
    command = f"touch {canary}".encode()
    for code in [
        b"cposix\nsystem\n(S'" + command + b"'\ntR.",  # protocol 0
        b"(S'" + command + b"'\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nS'" + command + b"'\no.",  # OBJ
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x02c__builtin__\neval\n.",
        b"\x80\x02cbuiltins\nlist.__class__\n.",
    ]:
        path.write_bytes(code)
        with pytest.raises(UnsafeFileError, match="would call"):
            open_weights(path)
        assert not canary.exists()
    for code in [
        control,
        b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93\x8c\x01a\x85R.",  # a name with dots
        b"\x80\x02\x82\x01.",
        b"\x80\x02Pa\n.",
        b"\x80\x05\x97.",
        b"\x80\x02R.",
        b"\x80\x02u.",
        b"(.",
    ]:
        path.write_bytes(code)
        with pytest.raises((UnsafeFileError, FileFormatError)):
            open_weights(path)


def test_programs(tmp_path: Path) -> None:
    """F29: modules, TorchScript and exported programs are no weights."""
    module = nn.Linear(2, 3)
    path = tmp_path / "model.pt"
    torch.save(module.state_dict(), path)
    check_equal(path, module.state_dict())
    for zipped, says in [(True, r"nn\.modules\.linear\.Linear"), (False, "cannot load safely")]:
        torch.save(module, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafeFileError, match=says):
            open_weights(path)
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 2)), path)
    with pytest.raises(UnsafeFileError, match="TorchScript"):
        open_weights(path)
    torch.export.save(torch.export.export(module, (torch.zeros(1, 2),)), tmp_path / "model.pt2")
    with pytest.raises(UnsafeFileError, match=r"torch\.export"):
        open_weights(tmp_path / "model.pt2")


SPECIAL = [
    ("stride 0", torch.ones(1).expand(10**9), "'odd'.*repeats"),
    ("stride 0 inside", torch.ones(3, 1).expand(3, 4), "'odd'.*repeats"),
    ("overlap", torch.ones(6).as_strided((3, 3), (1, 1)), "'odd'.*repeats"),
    ("conjugate", torch.ones(3, dtype=torch.complex64).conj(), "'odd'.*special kind"),
    ("meta", torch.empty(3, device="meta"), "special kind.*meta"),
    ("sparse", torch.eye(3).to_sparse(), "special kind.*sparse"),
    ("csr", torch.eye(3).to_sparse_csr(), "special kind.*sparse"),
    ("nested", torch.nested.nested_tensor([torch.ones(2)]), "special kind.*nested"),
    ("quantized", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "special kind.*qtensor"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "tensor", "says"), SPECIAL, ids=[row[0] for row in SPECIAL])
def test_special_tensors(tmp_path: Path, kind: str, tensor: torch.Tensor, says: str) -> None:
    """F32: refused, and those that take a constructor of their own are never made."""
    path = tmp_path / "model.ckpt"
    torch.save({"good": BASE, "odd": tensor}, path)
    with pytest.raises(MismatchError, match=says):
        open_weights(path)
    torch.save({"state_dict": {"good": BASE}, "elsewhere": tensor}, path)
    if "'odd'" in says:
        check_equal(path, {"good": BASE})
    else:
        with pytest.raises(MismatchError, match=says):
            open_weights(path)


def test_a_tensor_alone_has_a_name(tmp_path: Path) -> None:
    for content in (BASE, torch.nn.Parameter(BASE)):
        torch.save(content, tmp_path / "a.pt")
        check_equal(tmp_path / "a.pt", {ONLY_TENSOR: BASE})


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({}, MismatchError),
        ({"a": 1}, MismatchError),
        ({"state_dict": {}}, MismatchError),
        ("text", FileFormatError),
        (None, FileFormatError),
        ({"": BASE}, FileFormatError),
        ({"a\0": BASE}, FileFormatError),
        ({"a" * 10**6: BASE}, FileFormatError),
    ],
)
def test_without_weights(tmp_path: Path, content: Any, error: type) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(error):
        open_weights(tmp_path / "model.ckpt")


def view(shape: Any, stride: Any, offset: Any, count: int = 48, key: str = "0") -> bytes:
    """The pickle of {"a": tensor} with any claim about its view of a storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if item is BASE else None

    buffer = io.BytesIO()
    call = Call(torch._utils._rebuild_tensor_v2, BASE, offset, shape, stride, False, OrderedDict())
    Pickler(buffer, 2).dump({"a": call})
    return buffer.getvalue()


def archive(path: Path, pickled: bytes, *more: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """A zip archive as torch.save writes it, with a pickle of any kind."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in [("x/data.pkl", pickled), ("x/version", b"3\n"), ("x/data/0", DATA), *more]:
            file.writestr(name, content)
    return path


PEAK = [0.0]


def peak_growth() -> float:
    """MB by which the peak memory of this process has grown since the last call; 0 on Windows."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)
    growth, PEAK[0] = peak - PEAK[0], peak
    return growth


VIEWS = [
    ("beyond", (7, 8), (8, 1), 0, 48, "0"),
    ("offset beyond", (6, 8), (8, 1), 1, 48, "0"),
    ("negative offset", (3,), (1,), -1, 48, "0"),
    ("negative stride", (3,), (-1,), 5, 48, "0"),
    ("negative size", (-3,), (1,), 0, 48, "0"),
    ("overflow", (2**62, 2**62), (2**62, 1), 0, 48, "0"),
    ("overflow beside 0", (2**62, 2**62, 0), (2**62, 1, 1), 0, 48, "0"),
    ("lengths differ", (6, 8), (1,), 0, 48, "0"),
    ("no numbers", (6.0, 8), (8, 1), 0, 48, "0"),
    ("no tuple", 48, 1, 0, 48, "0"),
    ("storage too long", (49,), (1,), 0, 49, "0"),
    ("storage beyond the file", (10**6,), (1,), 0, 10**6, "0"),
    ("storage of 2^62", (2**62,), (1,), 0, 2**62, "0"),
    ("storage of -1", (1,), (1,), 0, -1, "0"),
    ("no storage", (6, 8), (8, 1), 0, 48, "7"),
    ("other member", (6, 8), (8, 1), 0, 48, "../data.pkl"),
]


@pytest.mark.parametrize(("case", "shape", "stride", "offset", "count", "key"), VIEWS, ids=[row[0] for row in VIEWS])
@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])  # mapped, and copied
def test_views(
    tmp_path: Path, case: str, shape: Any, stride: Any, offset: Any, count: int, key: str, name: str
) -> None:
    check_equal(archive(tmp_path / f"good_{name}", view((6, 8), (8, 1), 0)), {"a": BASE})
    bad = archive(tmp_path / name, view(shape, stride, offset, count, key), ("x/padding", bytes(1000)))
    peak_growth()
    with pytest.raises(IntegrityError) as caught:
        open_weights(bad)
    assert str(bad) in str(caught.value)
    assert peak_growth() < 100


def central(content: bytes, member: int, field: int, value: bytes) -> bytes:
    """The archive with bytes of one entry of its directory replaced."""
    at = struct.unpack("<I", content[-6:-2])[0]
    for _ in range(member):
        at += 46 + sum(struct.unpack("<HHH", content[at + 28 : at + 34]))
    return content[: at + field] + value + content[at + field + len(value) :]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(tmp_path: Path) -> None:
    """F31: refused by the directory, before any member is read."""
    pickled = view((6, 8), (8, 1), 0)
    content = archive(tmp_path / "good.pt", pickled).read_bytes()
    check_equal(tmp_path / "good.pt", {"a": BASE})
    path = tmp_path / "bad.pt"

    def refused(error: type, says: str) -> None:
        with pytest.raises(error, match=says) as caught:
            open_weights(path)
        assert type(caught.value) is error
        assert str(path) in str(caught.value)

    peak_growth()
    archive(path, pickled, method=zipfile.ZIP_DEFLATED)
    refused(UnsafeFileError, "compressed")
    archive(path, pickled, ("x/data/1", bytes(200_000_000)), method=zipfile.ZIP_DEFLATED)  # a bomb of 1:1000
    assert path.stat().st_size < 300_000
    refused(UnsafeFileError, "compressed")
    archive(path, pickled, ("x/data/0", DATA))
    refused(UnsafeFileError, "repeated")
    archive(path, pickled, ("y/data.pkl", b"."))
    refused(FileFormatError, "not a PyTorch checkpoint")
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("good.pt", content)
    refused(FileFormatError, "not a PyTorch checkpoint; unpack it")
    path.write_bytes(central(content, 2, 8, b"\1\0"))
    refused(UnsafeFileError, "encrypted")
    path.write_bytes(central(content, 2, 20, b"\0\0\0\1" * 2))
    refused(UnsafeFileError, "overlapping")
    path.write_bytes(central(content, 0, 16, b"\1\2\3\4"))
    refused(IntegrityError, "damaged zip archive")  # a wrong checksum
    path.write_bytes(central(content, 2, 0, b"PK\1\3"))
    refused(IntegrityError, "damaged zip archive")
    for cut in [1, 30, len(content) // 2, len(content) - 8]:
        path.write_bytes(content[:-cut])
        refused(IntegrityError, "incomplete download")
    assert peak_growth() < 250  # the 200 MB of the bomb, while it is written


def test_big_endian(tmp_path: Path) -> None:
    swapped = BASE.numpy().byteswap().tobytes()
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        for name, content in [("data.pkl", view((6, 8), (8, 1), 0)), ("byteorder", b"big"), ("data/0", swapped)]:
            file.writestr(f"x/{name}", content)
        file.writestr("x/version", b"3\n")
    check_equal(tmp_path / "model.pt", {"a": BASE})


def test_truncated_legacy(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": BASE}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    check_equal(path, {"a": BASE})
    path.write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match="damaged"):
        open_weights(path)
    path.write_bytes(content.replace(b"K0", b"\x8a\x05\xff\xff\xff\xff\x01", 1))  # a storage of 34 GB
    peak_growth()
    with pytest.raises(IntegrityError, match="damaged"):
        open_weights(path)
    assert peak_growth() < 100


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    torch.save(TENSORS, path)
    check_equal(path, TENSORS)
    for limit, value, says in [("MAX_OPCODES", 50, "steps"), ("MAX_GLOBALS", 5, "globals")]:
        with monkeypatch.context() as patch:
            patch.setattr(pickle_globals, limit, value)
            with pytest.raises(UnsafeFileError, match=says):
                open_weights(path)


def bombs() -> dict[str, bytes]:
    """Small pickles that would take very long, all memory, or the stack of the process."""
    many = 50_000
    return {
        "deep tuple as key": b"}" + b")" + b"\x85" * 300_000 + b"Ns.",
        "doubled tuple as key": b"})q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"Ns.",
        "deep list": b"]" * many + b"a" * (many - 1) + b".",
        "memo index": b"Nr\xff\xff\xff\xff.",
        "long bytes": b"\x8e" + struct.pack("<Q", 2**62) + b"a.",
        "doubling": b"]q\0" + b"".join(b"(h%ch%clq%c" % (n, n, n + 1) for n in range(60)) + b"Q.",
        "huge integer": b"\x8b" + struct.pack("<I", 2**20) + b"\x7f" * 2**20 + b".",
        "many setitems": b"(" + b"N" * many + b"}" + b"NNs" * many + b"t.",
        "long calls": b"ctorch\nfloat32\nq\0(" + b"N" * many + b"tq\1" + b"h\0h\1R0" * many + b"N.",
        "many inner dicts": b"}q\0(" + b"".join(b"K%cN" % n for n in range(100)) + b"u}("
        + b"".join(b"U\x02" + b"%02xh\0" % n for n in range(250)) + b"u.",
        "bytearray of 2 GB": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "many globals": b"".join(b"cm\nC%d\n" % n for n in range(many)) + b".",
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bombs()))
def test_pickle_bombs(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "x.pt", b"\x80\x02" + bombs()[name])
    peak_growth()
    start = time.process_time()
    with pytest.raises(MinisdError) as caught:
        open_weights(path)
    assert time.process_time() - start < 3
    assert peak_growth() < 100
    assert len(str(caught.value)) < 600


def small_checkpoint(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    tensors = {"a": torch.zeros(4), "b": torch.ones(2)}
    torch.save({"state_dict": tensors, "step": 1}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


SMALL = [small_checkpoint(zipped) for zipped in (False, True)]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_mutated_checkpoint(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, zipped: bool) -> None:
    """One mutation: a MinisdError, or (zip archives, whose pickle has a checksum) the same shapes."""
    valid = SMALL[zipped]
    where = data.draw(st.integers(0, len(valid) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    content = data.draw(
        st.sampled_from(
            [
                valid[:where] + byte + valid[where + 1 :],
                valid[:where] + valid[where + 1 :],
                valid[:where] + byte + valid[where:],
                valid[:where],
                valid + byte,
            ]
        )
    )
    path = tmp_path_factory.getbasetemp() / "mutated.pt"
    path.write_bytes(content)
    try:
        file = open_weights(path)
        sums = [file.tensor(name).sum() for name in file.shapes]
    except MinisdError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    if zipped:
        assert file.shapes == {"a": (4,), "b": (2,)}
    assert len(sums) == len(file.shapes)


STEPS = [bytes([n]) for n in range(256)] + [b"}", b"(", b"q\0", b"h\0", b"X\1\0\0\0a"]


@settings(max_examples=300, deadline=None)
@given(program=st.lists(st.sampled_from(STEPS), max_size=60))
def test_any_program(tmp_path_factory: pytest.TempPathFactory, program: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "program.pt"
    path.write_bytes(b"\x80\x02" + b"".join(program) + b".")
    with pytest.raises(MinisdError):
        open_weights(path)
