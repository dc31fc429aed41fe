"""Rows of `minisd bench` that need new processes: loading, peak memory, first image; times are not tested."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.bench import parsed, setup, table

from minisd.cli import bench, main
from minisd.errors import MinisdError
from minisd.models import VAE
from minisd.parity.benchmark import first, implementations, load, memory
from minisd.parity.benchmark.families import FAMILIES, tiny
from minisd.parity.benchmark.load import Loading
from minisd.parity.benchmark.new_process import resident

pytestmark = pytest.mark.usefixtures("without_collections")


def test_loading_is_measured_in_new_processes(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(load, "NETWORKS", {"vae": VAE})
    assert bench.run(parsed("--rows", "load", "--dtype", "bfloat16", "--keep", weights, "--clock", "processor")) == 0
    lines = table(capsys.readouterr().out)[2:]
    assert [cells[0] for cells in lines][:2] == ["load the vae", "load the vae, read all of it"]
    assert {cells[1] for cells in lines} == {"bfloat16"}
    assert {cells[8] for cells in lines} == {"exact"}
    assert {cells[7] for cells in lines} == {""}
    if resident() is not None:
        assert "x file" in lines[2][2]


def test_different_weights_after_loading_are_a_miss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "x.safetensors").write_bytes(bytes(100))
    loadings = {
        "diffusers": Loading(4.0, 6.0, 150, [1, 2, 2, 3]),
        "minisd": Loading(1.0, 2.0, 100, [1, 2, 3, 3]),
    }
    order = []

    def measured(library: str, *_: object) -> Loading:
        order.append(library)
        return loadings[library]

    monkeypatch.setattr(load, "measure_in_new_process", measured)
    monkeypatch.setattr(load, "NETWORKS", ["unet"])
    seconds, read, memory = load.rows(setup(tmp_path, repeats=2))
    assert order == ["diffusers", "minisd"] * 2
    assert (seconds.ratio, read.ratio, memory.ratio) == (4, 3, 1.5)
    assert memory.diffusers == [1.5, 1.5]
    assert seconds.error == 0.25
    assert not seconds.passes


MAPPED_LOADER = """
import sys
import torch
from minisd.parity.benchmark import implementations, load

def mapped(folder, device, dtype):
    network = torch.nn.Linear(5000, 5000, bias=False, device="meta")
    weight = torch.from_file(sys.argv[1], size=25_000_000)
    network.weight = torch.nn.Parameter(weight.view(5000, 5000))
    return network

implementations.loader = lambda library, component: mapped
print(load.measure("minisd", "unet", None, torch.float32).peak_bytes)
"""


@pytest.mark.skipif(resident() is None, reason="this system does not report memory")
def test_pages_of_a_mapped_file_count_once_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(100_000_000))
    script = [sys.executable, "-c", MAPPED_LOADER, str(file)]
    peak = int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert 95e6 < peak < 130e6


def test_the_error_of_a_failing_process_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MinisdError, match=r"loading the vae with minisd in float32 failed: .*vae"):
        load.measure_in_new_process("minisd", "vae", tmp_path, torch.float32)


def test_the_rows_of_peak_memory(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of diffusers are imitated in this one, because its import takes long."""
    implementations.make_model(tiny(FAMILIES["sd15"]), weights)

    def result_of(module: str, arguments: tuple, what: str) -> object:
        library, name, folder, dtype, file = arguments
        peak = memory.measure(library, name, folder, getattr(torch, dtype), file)
        return peak if library != "minisd" else real(module, arguments, what)

    real = memory.result_of
    monkeypatch.setattr(memory, "result_of", result_of)
    found = [*memory.rows(setup(weights)._replace(asked=["vae", "encode"]))]
    assert len(found) == (resident() is not None)
    for row in found:
        assert row.unit == "MiB"
        assert row.minisd[0] > 0
        assert 0 < row.error < 1e-5
        assert row.cells()[4] == f"{row.minisd[0]:.2f} MiB"
    assert [*memory.rows(setup(weights)._replace(targets=[]))] == []


ALLOCATING_WORKLOAD = """
import sys
import torch
from pathlib import Path
from minisd.parity.benchmark import memory
from minisd.parity.benchmark.workloads import Workload

def loader(library, component):
    def load(folder, device, dtype):
        torch.ones(75_000_000)  # freed before the call: must not count
        return torch.nn.Linear(5000, 5000)
    return load

def call(network, x):
    torch.ones(25_000_000)
    return x

memory.loader = loader
memory.WORKLOADS["vae"] = Workload("x", "vae", None, call, call)
torch.save(([torch.ones(1)], (torch.ones(1),)), sys.argv[1])
print(memory.measure("minisd", "vae", None, torch.float32, Path(sys.argv[1])).peak_bytes)
"""


@pytest.mark.skipif(resident() is None, reason="this system does not report memory")
def test_peak_memory_is_that_of_the_call_alone(tmp_path: Path) -> None:
    script = [sys.executable, "-c", ALLOCATING_WORKLOAD, str(tmp_path / "inputs.pt")]
    peak = int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert 95e6 < peak < 130e6


def test_the_first_image_and_the_help(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Both command lines run in this process, because the import of diffusers takes long."""
    implementations.make_model(tiny(FAMILIES["sd15"]), weights)
    commands = []

    def output_of(command: list[str], what: str) -> None:
        commands.append(command[1:4])
        if command[1] == "-c":
            monkeypatch.setattr(sys, "argv", command[2:])
            exec(command[2], {})
        elif command[2] == "minisd" and "--help" in command:
            with pytest.raises(SystemExit, match="0"):
                main(command[3:])
        elif command[2] == "minisd":
            assert main(command[3:]) == 0

    monkeypatch.setattr(first, "output_of", output_of)
    image, help_text = first.rows(setup(weights))
    assert len(image.minisd) == len(image.diffusers) == 1
    assert image.passes
    assert help_text.passes
    assert [command[1] for command in commands[-2:]] == ["diffusers.commands.diffusers_cli", "minisd"]
    assert len(commands) == 8  # a warm-up and a run of each of the four
    assert "usage: minisd" in capsys.readouterr().out
