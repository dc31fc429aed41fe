"""`minisd bench` with tiny networks: every row is measured, and a wrong network is detected; times are not tested."""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minisd.cli import bench, options
from minisd.cli.parser import Parser
from minisd.errors import InputError, MinisdError, OutputError
from minisd.models import VAE
from minisd.parity.benchmark import implementations, load, measure, workloads
from minisd.parity.benchmark.load import Loading


def parsed(*argv: object) -> argparse.Namespace:
    parser = Parser(prog="minisd bench")
    options.bench(parser)
    return parser.parse(["--tiny", "--repeats", "1", "--threads", "1", "--device", "cpu", *map(str, argv)])


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(autouse=True)
def without_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each measurement the garbage is collected, which takes long in a process with all tests."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_the_networks_agree_in_the_table_and_in_the_json_file(
    family: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / "bench.json"
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    args = ("--family", family, "--rows", "text,unet,vae,encode", "--keep", weights, "--json", target)
    assert bench.run(parsed(*args, "--repeats", 2)) == 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.random.get_rng_state(), state)

    header, rule, *rows = table(capsys.readouterr().out)
    assert header == ["what", "dtype", "diffusers", "minisd", "ratio", "of peak", "accuracy"]
    assert set(rule) == {"---"}
    assert [row[0] for row in rows[::2]] == [workloads.WORKLOADS[k].what for k in ("text", "unet", "vae", "encode")]
    assert [row[1] for row in rows] == ["float32", "bfloat16"] * 4

    found = json.loads(target.read_text())
    assert {"date", "settings", "machine", "peaks_gflops", "rows"} == set(found)
    assert {"CPU", "cores", "threads", "torch", "diffusers", "transformers"} <= set(found["machine"])
    assert all(peak["matmul"] > 0 and peak["conv"] > 0 for peak in found["peaks_gflops"])
    for row in found["rows"]:
        assert len(row["diffusers"]) == len(row["minisd"]) == 2
        assert row["share_of_peak"] == pytest.approx(row["gflop"] / row["minisd_median"] / row["peak"])
        assert row["ratio"] == pytest.approx(row["diffusers_median"] / row["minisd_median"])
        if row["dtype"] == "float32":
            assert row["error"] < 1e-5
            assert row["oracle_error"] == 0
        else:
            assert 1e-4 < row["oracle_error"] < 0.05  # relative to diffusers in float32


def test_operations_are_counted() -> None:
    """As published for Stable Diffusion 1.5 at 512 x 512: the decoder 2.51 TFLOP, the encoder 1.12.

    The guided step has 1.607 without what both rows of the batch have in common, which minisd computes once.
    """
    family = workloads.FAMILIES["sd15"]
    found = {name: workloads.count_flops(workloads.WORKLOADS[name], family, 512) / 1e12 for name in ("unet", "vae")}
    assert found["vae"] == pytest.approx(2.514, abs=0.001)
    assert found["unet"] == pytest.approx(1.607 - 0.041, abs=0.001)
    linear = 12 * 2 * 2 * 77 * (4 * 768**2 + 2 * 768 * 3072)  # of the text encoder; its attention is added
    text = workloads.count_flops(workloads.WORKLOADS["text"], family, 512)
    assert text == linear + 12 * 2 * 2 * 2 * 77 * 77 * 768


def test_loading_is_measured_in_new_processes(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench, "NETWORKS", {"vae": VAE})
    assert bench.run(parsed("--rows", "load", "--dtype", "bfloat16", "--keep", weights)) == 0
    rows = table(capsys.readouterr().out)[2:]
    assert [row[0] for row in rows][:2] == ["load the vae", "load the vae, read all of it"]
    assert {row[1] for row in rows} == {"bfloat16"}
    assert {row[6] for row in rows} == {"exact"}
    assert {row[5] for row in rows} == {""}
    if Path("/proc/self/status").exists():
        assert "x file" in rows[2][2]


def test_weights_are_made_once_and_norms_are_not_trivial(weights: Path) -> None:
    folder = weights / "once"
    folder.mkdir()
    (folder / "vae.partial").mkdir()  # from an interrupted run
    for _ in range(2):
        implementations.make_weights("vae", workloads.tiny(workloads.FAMILIES["sd15"]), folder)
    assert [each.name for each in folder.iterdir()] == ["vae"]
    made = (folder / "vae" / "diffusion_pytorch_model.safetensors").stat()
    implementations.make_weights("vae", workloads.tiny(workloads.FAMILIES["sd15"]), folder)
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == made.st_mtime_ns
    vae = implementations.loader("minisd", "vae")(folder, torch.device("cpu"), torch.float32)
    assert vae.decoder.norm_out.weight.std() > 0.05


@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_a_wrong_network_is_marked_and_the_exit_code_is_6(
    factor: float,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    correct = workloads.WORKLOADS["vae"]
    wrong = replace(correct, minisd=lambda *args: factor * correct.minisd(*args))
    monkeypatch.setitem(workloads.WORKLOADS, "vae", wrong)
    target = tmp_path / "bench.json"
    args = ("--rows", "vae", "--dtype", "float32", "--keep", weights, "--json", target)
    assert bench.run(parsed(*args)) == 6
    text = capsys.readouterr().out
    assert table(text)[-1][6].startswith("**MISS**")
    assert "1 of 1 rows miss" in text
    (row,) = json.loads(target.read_text())["rows"]
    assert row["passes"] is False
    assert row["error"] == (None if math.isnan(factor) else pytest.approx(1e-3, rel=0.1))


def test_the_allowed_error_is_limited() -> None:
    def row(error: float, gate: float) -> measure.Row:
        return measure.Row("x", "cpu", "float16", "s", [1.0], [1.0], error, gate=gate)

    assert measure.allowed_error(0.0) == 1e-4
    assert measure.allowed_error(0.01) == 0.02
    assert measure.allowed_error(math.inf) == 0.1
    assert measure.allowed_error(math.nan) == 1e-4
    assert row(0.02, 0.02).passes
    assert not row(0.021, 0.02).passes
    assert not row(math.nan, 0.02).passes


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

    monkeypatch.setattr(measure, "measure_in_new_process", measured)
    seconds, read, memory = measure.measure_loading(["unet"], tmp_path, [(measure.CPU, torch.float32)], 2)
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


@pytest.mark.skipif(load._resident("VmRSS") is None, reason="this system does not report memory")
def test_pages_of_a_mapped_file_count_once_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(100_000_000))
    script = [sys.executable, "-c", MAPPED_LOADER, str(file)]
    peak = int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert 95e6 < peak < 130e6


def test_the_error_of_a_failing_process_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MinisdError, match=r"loading the vae with minisd in float32 failed: .*vae"):
        load.measure_in_new_process("minisd", "vae", tmp_path, torch.float32)


def test_the_error_without_the_oracle_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'minisd\[oracle\]'"):
        bench.run(parsed())


@pytest.mark.parametrize(
    "argv",
    [
        ("--rows", "unet,nonsense"),
        ("--dtype", "float64"),
        ("--device", "tpu"),
        ("--repeats", 0),
        ("--rows", ""),
    ],
)
def test_wrong_options_are_errors_before_any_work(argv: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        bench.run(parsed("--keep", tmp_path / "new", *argv))
    assert not (tmp_path / "new").exists()


def test_an_existing_result_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    target.write_text("mine")
    with pytest.raises(OutputError):
        bench.run(parsed("--json", target))
    assert target.read_text() == "mine"
