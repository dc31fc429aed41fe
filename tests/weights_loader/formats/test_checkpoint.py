"""Pickled checkpoints: reference/reliability.md, F28-F33.  torch.load is the oracle; nothing is executed."""

import argparse
import datetime
import io
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minisd.errors import FileFormatError, IntegrityError, MinisdError, MismatchError, UnsafeFileError
from weights_loader.formats import pickle_machine, zip_archive
from weights_loader.formats.weight_file import open_weights

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(6, 8, generator=GENERATOR)
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

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
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
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_positive(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "model.ckpt"
    tensors = TENSORS | (NEW_DTYPES if zipped else {})
    torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert open_weights(path).notices == []
    if protocol < 4:  # torch.load knows no more
        check_equal(path, torch.load(path, weights_only=True))
    check_equal(path, tensors)


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
@pytest.mark.parametrize("protocol", [2, 4])
def test_lightning_checkpoint(tmp_path: Path, zipped: bool, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """F30: the tensors load, and none of the classes comes to life."""
    path = tmp_path / "model.ckpt"
    torch.save(lightning(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
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
    assert file.notices[0].startswith("8 entries beside the weights were not loaded: 'epoch', 'global_step'")


def test_other_wrappings(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    module = nn.BatchNorm1d(3)
    torch.save(module.state_dict(), path)  # carries `_metadata`
    check_equal(path, module.state_dict())
    torch.save({"model": module.state_dict(), "step": 1, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, path)
    check_equal(path, {f"model.{name}": tensor for name, tensor in module.state_dict().items()})
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
        if how == "raw" and isinstance(content, dict):  # its tensors come first
            assert "torch.storage._load_from_bytes" in message
        else:
            assert f".{call[0].__name__}'" in message
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
        b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93\x8c\x01a\x85R.",  # a name with dots
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x02c__builtin__\neval\n.",
        b"\x80\x02cbuiltins\nlist.__class__\n.",
    ]:
        path.write_bytes(code)
        with pytest.raises(UnsafeFileError, match="wants to run"):
            open_weights(path)
        assert not canary.exists()
    for code in [
        control,
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
    for zipped in [True, False]:
        torch.save(module, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafeFileError, match=r"nn\.modules\.linear\.Linear"):
            open_weights(path)
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 2)), path)
    with pytest.raises(UnsafeFileError, match="TorchScript"):
        open_weights(path)
    torch.export.save(torch.export.export(module, (torch.zeros(1, 2),)), tmp_path / "model.pt2")
    with pytest.raises(UnsafeFileError, match=r"torch\.export"):
        open_weights(tmp_path / "model.pt2")


SPECIAL = [
    ("stride 0", torch.ones(1).expand(10**9), "repeats"),
    ("stride 0 inside", torch.ones(3, 1).expand(3, 4), "repeats"),
    ("overlap", torch.ones(6).as_strided((3, 3), (1, 1)), "repeats"),
    ("meta", torch.empty(3, device="meta"), "special kind"),
    ("sparse", torch.eye(3).to_sparse(), "special kind"),
    ("csr", torch.eye(3).to_sparse_csr(), "special kind"),
    ("conjugate", torch.ones(3, dtype=torch.complex64).conj(), "special kind"),
    ("nested", torch.nested.nested_tensor([torch.ones(2)]), "special kind"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "tensor", "says"), SPECIAL, ids=[row[0] for row in SPECIAL])
def test_special_tensors(tmp_path: Path, kind: str, tensor: torch.Tensor, says: str) -> None:
    """F32: named, and never made."""
    path = tmp_path / "model.ckpt"
    torch.save({"good": BASE, "odd": tensor}, path)
    with pytest.raises(MismatchError, match=f"'odd'.*{says}"):
        open_weights(path)
    torch.save({"state_dict": {"good": BASE}, "elsewhere": tensor}, path)
    check_equal(path, {"good": BASE})


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({}, MismatchError),
        ({"a": 1}, MismatchError),
        ({"state_dict": {}}, MismatchError),
        (BASE, FileFormatError),
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


def view(shape: Any, stride: Any, offset: Any, count: int = 48) -> bytes:
    """The pickle of {"a": tensor} with any claim about its view of storage 0."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if item is BASE else None

    buffer = io.BytesIO()
    call = Call(torch._utils._rebuild_tensor_v2, BASE, offset, shape, stride, False, OrderedDict())
    Pickler(buffer, 2).dump({"a": call})
    return buffer.getvalue()


def archive(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


VIEWS = [
    ("beyond", (7, 8), (8, 1), 0, 48, FileFormatError),
    ("offset beyond", (6, 8), (8, 1), 1, 48, FileFormatError),
    ("negative offset", (3,), (1,), -1, 48, FileFormatError),
    ("negative stride", (3,), (-1,), 5, 48, FileFormatError),
    ("negative size", (-3,), (1,), 0, 48, FileFormatError),
    ("overflow", (2**62, 2**62), (2**62, 1), 0, 48, FileFormatError),
    ("overflow beside 0", (2**62, 2**62, 0), (2**62, 1, 1), 0, 48, FileFormatError),
    ("lengths differ", (6, 8), (1,), 0, 48, FileFormatError),
    ("no numbers", (6.0, 8), (8, 1), 0, 48, FileFormatError),
    ("no tuple", 48, 1, 0, 48, FileFormatError),
    ("storage too short", (49,), (1,), 0, 49, IntegrityError),
    ("storage of 2^62", (2**62,), (1,), 0, 2**62, IntegrityError),
    ("storage of -1", (1,), (1,), 0, -1, FileFormatError),
]


@pytest.mark.parametrize(("case", "shape", "stride", "offset", "count", "error"), VIEWS, ids=[row[0] for row in VIEWS])
def test_views(tmp_path: Path, case: str, shape: Any, stride: Any, offset: Any, count: int, error: type) -> None:
    data = BASE.numpy().tobytes()
    good = archive(tmp_path / "good.pt", [("x/data.pkl", view((6, 8), (8, 1), 0)), ("x/data/0", data)])
    check_equal(good, {"a": BASE})
    bad = archive(tmp_path / "bad.pt", [("x/data.pkl", view(shape, stride, offset, count)), ("x/data/0", data)])
    with pytest.raises(error) as caught:
        open_weights(bad)
    assert type(caught.value) is error
    assert str(bad) in str(caught.value)


def central(content: bytes, member: int, field: int, value: bytes) -> bytes:
    """The archive with bytes of one entry of its directory replaced."""
    at = struct.unpack("<I", content[-6:-2])[0]
    for _ in range(member):
        at += 46 + sum(struct.unpack("<HHH", content[at + 28 : at + 34]))
    return content[: at + field] + value + content[at + field + len(value) :]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(tmp_path: Path) -> None:
    """F31: refused from the directory, before anything is read."""
    members = [("x/data.pkl", view((6, 8), (8, 1), 0)), ("x/data/0", BASE.numpy().tobytes())]
    good = archive(tmp_path / "good.pt", members)
    check_equal(good, {"a": BASE})
    content = good.read_bytes()
    path = tmp_path / "bad.pt"

    def refused(error: type, says: str) -> None:
        with pytest.raises(error, match=says) as caught:
            open_weights(path)
        assert type(caught.value) is error
        assert str(path) in str(caught.value)

    archive(path, members, zipfile.ZIP_DEFLATED)
    refused(UnsafeFileError, "compressed")
    archive(path, [*members, ("x/data/1", bytes(50_000_000))], zipfile.ZIP_DEFLATED)  # a bomb of 1:1000
    assert path.stat().st_size < 60_000
    refused(UnsafeFileError, "compressed")
    archive(path, [*members, members[1]])
    refused(UnsafeFileError, "twice")
    archive(path, members[1:])
    refused(FileFormatError, "not of a PyTorch checkpoint")
    archive(path, [*members, ("y/data.pkl", b".")])
    refused(FileFormatError, "not of a PyTorch checkpoint")
    archive(path, members[:1])
    refused(IntegrityError, "lacks the data")
    archive(path, [*members, ("x/byteorder", b"big")])
    refused(FileFormatError, "big-endian")
    for field, value, error, says in [
        (8, b"\1\0", UnsafeFileError, "encrypted"),
        (10, b"\x08\0", UnsafeFileError, "compressed"),
        (24, b"\xc1\0\0\0", UnsafeFileError, "odd member"),  # packed and unpacked size differ
        (20, b"\0\0\0\1" * 2, UnsafeFileError, "outside"),
        (42, struct.pack("<I", 7), UnsafeFileError, "overlap"),
        (0, b"PK\1\3", FileFormatError, "damaged"),
    ]:
        path.write_bytes(central(content, 1, field, value))
        with pytest.raises(error, match=says):
            open_weights(path)
    path.write_bytes(central(content, 0, 16, b"\1\2\3\4"))
    refused(IntegrityError, "CRC")
    for cut in [1, 30, len(content) // 2, len(content) - 8]:
        path.write_bytes(content[:-cut])
        refused(IntegrityError, "incomplete download")
    path.write_bytes(content + b"more")
    refused(IntegrityError, "incomplete download")
    path.write_bytes(content[:4] + b"more" + content[4:])
    refused(FileFormatError, "not where it should be")
    path.write_bytes(content[:-14] + struct.pack("<HH", 65535, 65535) + content[-10:])
    refused(FileFormatError, "damaged")


def test_local_headers(tmp_path: Path) -> None:
    """The header of a member must agree with the directory: else other readers would see other weights."""
    path = tmp_path / "model.pt"
    torch.save({"a": BASE}, path)
    check_equal(path, {"a": BASE})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("model/data/0").header_offset
    extra = struct.unpack("<H", content[at + 28 : at + 30])[0]
    assert extra > 8
    for field, value in [
        (0, b"KP"),
        (28, struct.pack("<H", extra - 8)),
        (28, b"\0\0"),
        (30, b"#"),
        (26, b"\0\0"),
    ]:
        path.write_bytes(content[: at + field] + value + content[at + field + len(value) :])
        with pytest.raises(UnsafeFileError, match="contradicts"):
            open_weights(path)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    torch.save(TENSORS, path)
    check_equal(path, TENSORS)
    for module, limit, value, says in [
        (zip_archive, "MAX_MEMBERS", 10, "members"),
        (zip_archive, "MAX_PICKLE", 1000, "bytes"),
        (pickle_machine, "MAX_OPCODES", 50, "steps"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            with pytest.raises(UnsafeFileError, match=says):
                open_weights(path)


def bombs() -> dict[str, bytes]:
    """Small pickles on which a careless machine spends for ever, or all memory, or its C stack."""
    many = 50_000
    return {
        "deep tuple as key": b"}" + b")" + b"\x85" * 300_000 + b"Ns.",
        "deep list": b"]" * many + b"a" * (many - 1) + b".",
        "memo index": b"Nr\xff\xff\xff\xff.",
        "long bytes": b"\x8e" + struct.pack("<Q", 2**62) + b"a.",
        "doubling": b"]q\0" + b"".join(b"(h%ch%clq%c" % (n, n, n + 1) for n in range(60)) + b"Q.",
        "huge integer": b"\x8b" + struct.pack("<I", 2**20) + b"\x7f" * 2**20 + b".",
        "many setitems": b"(" + b"N" * many + b"}" + b"NNs" * many + b"t.",
        "long calls": b"ctorch\nfloat32\nq\0(" + b"N" * many + b"tq\1" + b"h\0h\1R0" * many + b"N.",
        "many inner dicts": b"}q\0(" + b"".join(b"K%cN" % n for n in range(100)) + b"u}("
        + b"".join(b"U\x02" + b"%02xh\0" % n for n in range(250)) + b"u.",
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bombs()))
def test_pickle_bombs(tmp_path: Path, name: str) -> None:
    data = BASE.numpy().tobytes()
    path = archive(tmp_path / "x.pt", [("x/data.pkl", b"\x80\x02" + bombs()[name]), ("x/data/0", data)])
    start = time.process_time()
    with pytest.raises(MinisdError) as caught:
        open_weights(path)
    assert time.process_time() - start < 3
    assert len(str(caught.value)) < 600


@settings(max_examples=300, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_mutated_checkpoint(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, zipped: bool) -> None:
    """One mutation: a MinisdError, or (zip archives, whose pickle has a CRC) the same tensors but for it."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(4), "b": torch.ones(2)}, "step": 1}, buffer,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    valid = buffer.getvalue()
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
        tensors = {name: file.tensor(name) for name in file.shapes}
    except MinisdError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    if zipped:
        assert file.shapes == {"a": (4,), "b": (2,)}
        assert sum(int(tensor.view(torch.uint8).ne(good.view(torch.uint8)).sum()) for tensor, good in
                   zip(tensors.values(), [torch.zeros(4), torch.ones(2)], strict=True)) <= 1  # fmt: skip


STEPS = [bytes([n]) for n in range(256)] + [b"}", b"(", b"q\0", b"h\0", b"X\1\0\0\0a"]


@settings(max_examples=300, deadline=None)
@given(program=st.lists(st.sampled_from(STEPS), max_size=60))
def test_any_program(tmp_path_factory: pytest.TempPathFactory, program: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "program.pt"
    path.write_bytes(b"\x80\x02" + b"".join(program) + b".")
    with pytest.raises(MinisdError):
        open_weights(path)
