"""Writing safetensors files: reference/reliability.md, O3 and section 4, "Checkpoint writer"."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

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
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_alignment(tmp_path: Path) -> None:
    """Data begin at a multiple of 64 bytes, as does each tensor whose size is one: kernels round the same then."""
    path = tmp_path / "model.safetensors"
    for length in range(1, 130, 9):  # of the header
        save_safetensors(TENSORS, path, {"a": "x" * length}, overwrite=True)
        assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0
        file = open_weights(path)
        for name, tensor in TENSORS.items():
            aligned = 64 if tensor.nbytes % 64 == 0 else tensor.itemsize  # no tensor is copied on loading
            assert file.tensor(name).data_ptr() % aligned == 0, name
            assert file._tensors[name].data_ptr() == file.tensor(name).data_ptr()


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


def test_what_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    save_safetensors({"a": BASE}, path)
    before = path.read_bytes()
    header = writing._header

    def damaged(*args: Any) -> tuple[bytes, list[str]]:
        raw, names = header(*args)
        return raw.replace(b'"F32"', b'"F31"'), names

    monkeypatch.setattr(writing, "_header", damaged)
    with pytest.raises(OutputError, match="does not read back"):
        save_safetensors({"a": BASE}, path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


def test_not_enough_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OutputError, match=r"needs 320 bytes, but 100 are free"):
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
    assert "is unchanged" in done.stdout
    assert bool((safetensors.torch.load_file(path)["a"] == 1).all())
    assert sorted(os.listdir(tmp_path)) == ["file", "file2"]


STREAM = """
import resource, sys, torch
from weights_loader.formats.safetensors import save_safetensors
tensors = {str(index): torch.ones(2_500_000) for index in range(10)}  # 100 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_safetensors(tensors, sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere")
def test_streams(tmp_path: Path) -> None:
    done = run(STREAM, tmp_path / "file")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30  # MB beside the model
    assert (tmp_path / "file").stat().st_size > 100_000_000
