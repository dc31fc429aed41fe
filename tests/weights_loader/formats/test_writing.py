"""Writing files whole or not at all: reference/reliability.md, O1-O3 and section 4, "Checkpoint writer"."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors
import safetensors.torch
import torch

from minisd._internal.atomic_files import _prefix, check_target, write_atomically, write_json
from minisd.errors import InputError, OutputError
from weights_loader.formats import safetensors as writing
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.formats.weight_file import open_weights

ROOT = Path(__file__).resolve().parents[3]
GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(6, 8, generator=GENERATOR)
TENSORS = {
    "z": BASE,
    "transposed": BASE.T,
    "slice": BASE[1:5:2, 3:],
    "shared": BASE.view(48)[7:],
    "expanded": torch.ones(1).expand(5),
    "half": BASE.half(),
    "bfloat": BASE.bfloat16(),
    "fp8": BASE.to(torch.float8_e4m3fn),
    "ids": torch.arange(7),
    "scalar": torch.tensor(0.5),
    "empty": torch.zeros(0, 4),
    "mask": torch.tensor([True]),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "conjugate": torch.tensor([1 + 2j]).to(torch.complex64).conj(),
    "naïve.名前": torch.zeros(2, dtype=torch.float64),
}


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "ü": "x" * 5}])
def test_round_trip(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(TENSORS, path, metadata)
    official = safetensors.torch.load_file(path)
    file = open_weights(path)
    assert file.metadata == ({} if metadata is None else metadata)
    with safetensors.safe_open(path, "pt") as reader:
        assert reader.metadata() == metadata
    assert set(official) == set(file.shapes) == set(TENSORS)
    for name, tensor in TENSORS.items():
        expected = tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
        for got in [official[name], file.tensor(name)]:
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
            assert got.contiguous().reshape(-1).view(torch.uint8).equal(expected), name
    for name in TENSORS:  # every tensor is where its dtype may be read, so none is copied on loading
        assert file._specs[name].offset % file.dtypes[name].itemsize == 0
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, None),
        ({"": BASE}, None),
        ({"a\0": BASE}, None),
        ({1: BASE}, None),
        ({"__metadata__": BASE}, None),
        ({"a": [1.0]}, None),
        ({"a": BASE.to_sparse()}, None),
        ({"a": BASE.to("meta")}, None),
        ({"a": BASE.to(torch.complex128)}, None),
        ({"a": BASE}, {"a": 1}),
        ({"a": BASE}, {"a": "\ud800"}),
    ],
)
def test_refused_tensors(tmp_path: Path, tensors: Any, metadata: Any) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors({"a": BASE}, path, {"a": "b"})
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        save_safetensors(tensors, path, metadata, overwrite=True)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


WRITERS: list[Callable[..., None]] = [
    lambda path, **options: save_safetensors({"a": BASE}, path, **options),
    lambda path, **options: write_json({"a": [1, "é"]}, path, **options),
    lambda path, **options: write_atomically(path, lambda file: file.write(b"new"), **options),
]


@pytest.mark.parametrize("write", WRITERS)
def test_targets(tmp_path: Path, write: Callable[..., None]) -> None:
    """O1, O2: what would be damaged is refused, before any work."""
    path = tmp_path / "file"
    write(path)
    first = path.read_bytes()
    write(path, overwrite=True)
    assert path.read_bytes() == first  # the positive controls, and the same bytes each time
    path.write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    for name, options in [
        ("file", {}),
        ("folder", {"overwrite": True}),
        ("link", {"overwrite": True}),
        ("dangling", {"overwrite": True}),
        ("pipe", {"overwrite": True}),
        ("absent/file", {}),
        ("file/file", {}),
        ("a\0b", {}),
        ("x" * 300, {}),
    ]:
        with pytest.raises(OutputError):
            write(tmp_path / name, **options)
        assert path.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_no_work_for_a_target_that_cannot_be(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        raise AssertionError("worked")

    (tmp_path / "file").touch()
    for path in [tmp_path / "file", tmp_path / "absent" / "file"]:
        with pytest.raises(OutputError):
            write_atomically(path, write)
        with pytest.raises(OutputError):
            check_target(path)
    check_target(tmp_path / "other")
    check_target(tmp_path / "file", overwrite=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="read-only"):
        save_safetensors({"a": BASE}, tmp_path / "x")


def test_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    umask = os.umask(0o027)
    try:
        write_atomically(path, lambda file: file.write(b"1"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_atomically(path, lambda file: file.write(b"2"), overwrite=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604  # that of the file before
    finally:
        os.umask(umask)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()])
@pytest.mark.parametrize("where", ["write", "check"])
def test_failure_leaves_the_old_file(tmp_path: Path, failure: BaseException, where: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        if where == "write":
            file.write(b"half")
        raise failure

    write = fail if where == "write" else lambda file: file.write(b"new")
    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)) as caught:
        write_atomically(path, write, overwrite=True, check=fail if where == "check" else None)
    if isinstance(failure, OSError):
        assert str(path) in str(caught.value)
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    save_safetensors({"a": BASE}, path)
    before = path.read_bytes()
    header = safetensors._header

    def damaged(*args: Any) -> tuple[bytes, list[str]]:
        raw, names = header(*args)
        return raw.replace(b'"F32"', b'"F31"'), names

    monkeypatch.setattr(writing, "_header", damaged)
    with pytest.raises(OutputError, match="does not read back"):
        save_safetensors({"a": BASE}, path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


def test_target_that_appears_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OutputError, match="exists"):
        write_atomically(path, lambda file: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["file"]


def test_not_enough_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = safetensors.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(safetensors.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OutputError, match=r"needs 2\d\d bytes, 100 are free"):
        save_safetensors({"a": BASE}, tmp_path / "file")
    assert os.listdir(tmp_path) == []


DISK_FULL = """
import os, resource, sys, torch
from minisd.errors import OutputError
from weights_loader.formats.safetensors import save_safetensors
path = sys.argv[1]
save_safetensors({"a": torch.ones(1000)}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_safetensors({"a": torch.zeros(1_000_000)}, path, overwrite=True)
except OutputError as error:
    print(error)
save_safetensors({"a": torch.zeros(10)}, path + "2")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_disk_full(tmp_path: Path) -> None:
    """O3: the old file is intact, nothing else is left, and the next save works."""
    path = tmp_path / "file"
    done = run(DISK_FULL, path)
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    assert "untouched" in done.stdout
    assert bool((safetensors.torch.load_file(path)["a"] == 1).all())
    assert sorted(os.listdir(tmp_path)) == ["file", "file2"]


KILLED = """
import os, signal, sys
from minisd._internal.atomic_files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], write, overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed(tmp_path: Path) -> None:
    """The old file survives, and the next save sweeps what was left: of the dead only."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert run(KILLED, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (leftover,) = tmp_path.glob(".minisd-*.tmp")
    assert leftover.read_bytes() == b"half"
    alive = tmp_path / f"{_prefix()}{os.getpid()}-0.tmp"
    elsewhere = tmp_path / ".minisd-another-host-1-0.tmp"
    alive.touch()
    elsewhere.touch()
    write_atomically(path, lambda file: file.write(b"new"), overwrite=True)
    assert path.read_bytes() == b"new"
    assert set(tmp_path.iterdir()) == {path, alive, elsewhere}


STREAM = """
import resource, sys, torch
from weights_loader.formats.safetensors import save_safetensors
tensors = {str(index): torch.ones(5_000_000) for index in range(10)}  # 200 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_safetensors(tensors, sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere")
def test_streams(tmp_path: Path) -> None:
    done = run(STREAM, tmp_path / "file")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30  # MB beside the model
    assert (tmp_path / "file").stat().st_size > 200_000_000


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json({"b": [1, None, "é"], "a": 1e-5}, path)
    assert json.loads(path.read_bytes()) == {"b": [1, None, "é"], "a": 1e-5}
    assert path.read_bytes().endswith(b"}\n")
    loop: list[Any] = []
    loop.append(loop)
    for bad in [float("nan"), object(), {1j: 1}, "\ud800", loop]:
        with pytest.raises(InputError, match=r"a\.json"):
            write_json(bad, path, overwrite=True)
    assert json.loads(path.read_bytes())["a"] == 1e-5
