"""Training at official size: the command, on a model in small."""

import subprocess
import sys
from pathlib import Path

import pytest

import weights_loader
from minisd.configs import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import InputError
from tools import official_size


@pytest.mark.parametrize(
    ("stages", "results"),
    [
        (["lora, text encoder", "dreambooth"], ["dreambooth/dreambooth"]),
        pytest.param(
            ["embedding", "distill, guided", "distill, progressive", "edit"],
            ["distill-guided/guided", "distill-progressive/steps-2"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_each_stage_gets_a_row(
    stages: list[str],
    results: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(official_size, "SD1_TEXT", CLIPTextConfig(99, width=32, layers=1, heads=1, mlp_width=32))
    monkeypatch.setattr(official_size, "SD1_VAE", VAEConfig(channels=(32, 32), layers_per_block=1, sample_size=32))
    unet = UNetConfig(
        channels=(32, 64), depths=(1, 0), heads=(1, 2), layers_per_block=1, context_width=32,
        only_cross_attention=(False, False),
    )  # fmt: skip
    monkeypatch.setattr(official_size, "SD1_UNET", unet)
    official_size.main([str(tmp_path), "--pixels", "32", "--steps", "1", "--stages", *stages])
    printed = capfd.readouterr().out.splitlines()
    assert "| 32 x 32 pixels | steps | time, with loading and saving | processor | peak memory |" in printed
    assert [line.split("|")[1].strip() for line in printed[-len(stages) :]] == stages
    assert all(float(line.split("|")[5].split()[0]) > 0.1 for line in printed[-len(stages) :])
    for name in results:
        assert weights_loader.load(tmp_path / name).unet.config.sample_size == 16
    with pytest.raises(RuntimeError, match="ended with code 2"):
        official_size.measured(["train", "lora", str(tmp_path / "x")])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses memory above RLIMIT_DATA")
def test_a_command_that_needs_more_memory_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needy = [sys.executable, "-c", "bytearray(3 * 10**9)"]
    limited = subprocess.run(needy, preexec_fn=official_size._limiting(1), capture_output=True, check=False)
    assert b"MemoryError" in limited.stderr
    monkeypatch.setattr(official_size, "OutOfMemory", InputError)  # the command ends with the code of that error
    assert official_size.measured(["train", "lora", str(tmp_path / "x")], limit=1) == "- | - | more than 1 GB"
