"""`minisd bench` with tiny networks: every row is measured, and a wrong network is detected; times are not tested."""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.bench import parsed, setup, table

from minisd.cli import bench
from minisd.errors import InputError, OutOfMemory, OutputError
from minisd.parity.benchmark import implementations, machine, measure, profile, rows, timing, workloads
from minisd.parity.benchmark.families import FAMILIES, tiny
from minisd.parity.benchmark.training import TrainingStep
from weights_loader.loading import load as load_model

pytestmark = pytest.mark.usefixtures("without_collections")


@pytest.mark.parametrize(("family", "repeats"), [("sd15", 2), ("sd21", 1), ("sdxl", 1)])
def test_the_networks_agree_in_the_table_and_in_the_json_file(
    family: str,
    repeats: int,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(workloads, "STEPS", 2)  # some processors only imitate bfloat16, which takes long
    target, markdown = tmp_path / "bench.json", tmp_path / "bench.md"
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    names = [name for name in workloads.WORKLOADS if family != "sdxl" or name != "image"]
    args = ("--family", family, "--rows", ",".join(names), "--keep", weights, "--json", target, "--markdown", markdown)
    assert bench.run(parsed(*args, "--repeats", repeats)) == 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.random.get_rng_state(), state)

    text = capsys.readouterr().out
    assert text.startswith(markdown.read_text())
    header, rule, *lines = table(text)
    assert header == [*rows.HEADER]
    assert set(rule) == {"---"}
    assert [cells[0] for cells in lines[::2]] == [workloads.WORKLOADS[name].what for name in names]
    assert [cells[1] for cells in lines] == ["float32", "bfloat16"] * len(names)
    assert [cells[3] == "" for cells in lines[::2]] == [name == "text" for name in names]

    found = json.loads(target.read_text())
    assert {"date", "settings", "machine", "cores_of_other_processes", "peaks_gflops", "rows"} == set(found)
    assert {"CPU", "cores", "threads", "torch", "diffusers", "transformers"} <= set(found["machine"])
    assert all(peak["matmul"] > 0 and peak["conv"] > 0 for peak in found["peaks_gflops"])
    for row in found["rows"]:
        assert len(row["diffusers"]) == len(row["minisd"]) == repeats
        assert row["share_of_peak"] == pytest.approx(row["gflop"] / row["minisd_median"] / row["peak"])
        assert row["ratio"] == pytest.approx(row["diffusers_median"] / row["minisd_median"])
        if row["tuned"]:
            assert len(row["tuned"]) == repeats
        assert f"- {row['what']}, {row['dtype']}: {row['profile'][0]['operation']} " in text
        assert 0 < sum(part["share"] for part in row["profile"]) <= 1
        if row["dtype"] == "float32":
            assert row["error"] < 1e-5
            assert row["oracle_error"] == 0
        else:
            assert 1e-4 < row["oracle_error"] < rows.MAX_TOLERANCE  # relative to diffusers in float32


def test_operations_are_ordered_by_the_time_that_they_take(capfd: pytest.CaptureFixture) -> None:
    large, small = torch.ones(700, 700), torch.ones(7, 7)

    def call(times: int) -> None:
        for _ in range(times):
            large @ large
            small + small

    first, *others = profile.shares(call, 3)
    assert (first.operation, first.calls) == ("mm", 3)
    assert first.share > 0.5
    assert str(first).endswith(" % (3)")
    assert next(each for each in others if each.operation == "add").calls == 3
    assert capfd.readouterr().err == ""


def test_operations_are_counted() -> None:
    """As published for Stable Diffusion 1.5 at 512 x 512, less what minisd leaves out: the decoder has 2.514 TFLOP.

    The guided step has 1.607 without what both rows of the batch have in common, which minisd computes once. Where a
    large map is doubled, 5/9 of the operations are left out, see Upsample.
    """
    family = FAMILIES["sd15"]
    found = {name: workloads.count_flops(workloads.WORKLOADS[name], family, 512) / 1e12 for name in ("unet", "vae")}
    doubling = [2 * 9 * width**2 * side**2 / 1e12 for width, side in ((512, 128), (512, 256), (256, 512))]
    assert found["vae"] == pytest.approx(2.514 - 5 / 9 * sum(doubling), abs=0.001)
    assert found["unet"] == pytest.approx(1.607 - 0.041 - 5 / 9 * 2 * 2 * 9 * 640**2 * 64**2 / 1e12, abs=0.001)
    linear = 12 * 2 * 2 * 77 * (4 * 768**2 + 2 * 768 * 3072)  # of the text encoder; its attention is added
    text = workloads.count_flops(workloads.WORKLOADS["text"], family, 512)
    assert text == linear + 12 * 2 * 2 * 2 * 77 * 77 * 768


def test_operations_of_an_image_and_of_a_training_step() -> None:
    """The backward pass has a product for the gradient of the weights and one for that of the input of each layer."""
    family = FAMILIES["sticker"]
    found = {name: workloads.count_flops(each, family, 128) for name, each in workloads.WORKLOADS.items()}
    assert found["image"] == found["text"] + 20 * found["unet"] + found["vae"]
    assert 2.9 < found["train"] / found["unet"] < 3.3  # the guided step computes once what both rows share


def test_weights_are_made_once_and_norms_are_not_trivial(weights: Path) -> None:
    folder = weights / "once"
    folder.mkdir()
    (folder / "vae.partial").mkdir()  # from an interrupted run
    for _ in range(2):
        implementations.make_weights("vae", tiny(FAMILIES["sd15"]), folder)
    assert [each.name for each in folder.iterdir()] == ["vae"]
    made = (folder / "vae" / "diffusion_pytorch_model.safetensors").stat()
    implementations.make_weights("vae", tiny(FAMILIES["sd15"]), folder)
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
    assert table(text)[-1][8].startswith("**MISS**")
    assert "1 of 1 rows miss" in text
    (row,) = json.loads(target.read_text())["rows"]
    assert row["passes"] is False
    assert row["error"] == (None if math.isnan(factor) else pytest.approx(1e-3, rel=0.1))


def test_the_allowed_error_is_limited() -> None:
    def row(error: float, gate: float) -> rows.Row:
        return rows.Row("x", "cpu", "float16", "s", [1.0], [1.0], error, gate=gate)

    assert rows.allowed_error(0.0) == 1e-4
    assert rows.allowed_error(0.01) == 0.02
    assert rows.allowed_error(math.inf) == 0.1
    assert rows.allowed_error(math.nan) == 1e-4
    assert row(0.02, 0.02).passes
    assert not row(0.021, 0.02).passes
    assert not row(math.nan, 0.02).passes


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
        ("--rows", "first", "--family", "sdxl"),
        ("--clock", "processor", "--threads", 2),
        ("--size", 100),
    ],
)
def test_wrong_options_are_errors_before_any_work(argv: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        bench.run(parsed("--keep", tmp_path / "new", *argv))
    assert not (tmp_path / "new").exists()


def test_an_existing_result_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    target.write_text("mine")
    for option in ("--json", "--markdown"):
        with pytest.raises(OutputError):
            bench.run(parsed(option, target))
    assert target.read_text() == "mine"


def test_the_embedded_model_is_measured_with_its_own_weights(tmp_path: Path) -> None:
    configs = FAMILIES["sticker"]
    assert configs.size == 128
    for _ in range(2):
        implementations.make_model(configs, tmp_path)
    found, expected = load_model(tmp_path), load_model("sticker")
    assert torch.equal(found.unet.conv_in.weight, expected.unet.conv_in.weight)
    assert found.defaults == expected.defaults
    assert configs.unet == expected.unet.config


def test_a_training_step_repeats_its_gradients_and_a_wrong_gradient_is_seen() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    names = {"0.weight": "d", "0.bias": "c", "1.weight": "b", "1.bias": "a"}
    step = TrainingStep(network, torch.enable_grad, names, fused=True)
    x, noise, before = torch.randn(5, 3), torch.randn(5, 3), network[0].weight.detach().clone()
    losses, gradients = zip(
        *((step(lambda model, x: model(x), x, noise), step.gradients()) for _ in range(2)), strict=True
    )
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(network[0].weight, before)
    assert torch.equal(gradients[0][-9:], network[0].weight.grad.flatten())
    assert network[0].weight.grad.abs().max() > 0
    wrong = gradients[0].clone()
    wrong[-1] += 1e-3 * wrong.abs().max()
    assert rows.error((losses[1], wrong), (losses[0], gradients[0])) == pytest.approx(1e-3, rel=0.01)


def test_a_training_step_that_does_not_fit_is_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    implementations.make_model(tiny(FAMILIES["sd15"]), weights)
    monkeypatch.setattr("minisd._internal.memory.available", lambda device=None: 1000)
    with pytest.raises(OutOfMemory, match="the row of the training step needs about"):
        next(measure.rows("train", setup(weights)))


def test_each_clock_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 3.5])
    monkeypatch.setitem(timing.CLOCKS, "processor", lambda: next(ticks))
    assert timing.timed(torch.device("cpu"), "processor", lambda: torch.ones(1)) == (2.5, torch.ones(1))


def test_a_busy_machine_is_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = iter([(0.0, 10.0, 4.0), (10.0, 25.0, 9.0)])  # clock, all processes, this one
    monkeypatch.setattr(machine, "_seconds", lambda: next(counts))
    assert machine.OtherProcesses().cores() == 1.0
    assert machine.note_on_others(1.0, "now").startswith("**busy machine**, times are less certain: ")
    assert machine.note_on_others(0.05, "now").startswith("other processes take 0.05 of ")
    assert "unknown" in machine.note_on_others(None, "now")


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="this system has no /proc/stat")
def test_processor_time_of_the_machine(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 50 9000 500 1 2 3 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")
    _, every, own = machine._seconds(stat)
    assert every == 176 / os.sysconf("SC_CLK_TCK")  # without idle and waiting
    assert 0 < own < every * 1e6
    assert machine._seconds(tmp_path / "none") is None
