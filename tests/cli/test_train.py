"""`minisd train`: a model from nothing in seconds, one trained further, and mistakes that are found first."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import small_pipeline

import weights_loader
from minisd.cli import main

SHORT = ("--vae-minutes", "0.01", "--unet-minutes", "0.01", "--pool", "64")


def test_a_model_from_nothing_and_one_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "first"), *SHORT]) == 0
    model = tmp_path / "first" / "model"
    assert str(model) in capsys.readouterr().out
    first = weights_loader.load(model)
    assert first("a red circle", num_inference_steps=1).images[0].size == (64, 64)

    further = ("--start-from", str(model), "--unet-minutes", "0.01", "--pool", "64")
    assert main(["train", str(tmp_path / "second"), *further]) == 0
    second = weights_loader.load(tmp_path / "second" / "model")
    assert torch.equal(second.vae.decoder.conv_in.weight, first.vae.decoder.conv_in.weight)
    assert not torch.equal(second.unet.conv_in.weight, first.unet.conv_in.weight)

    assert main(["train", str(tmp_path / "first"), *further]) == 2  # its UNet is used to another autoencoder
    assert main(["train", str(tmp_path / "second"), *SHORT]) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--vae-minutes", "0"), "vae-minutes"),  # nothing to keep
        (("--unet-minutes", "0"), "unet-minutes"),
        (("--vae-steps", "0"), "vae-steps"),
        (("--unet-steps", "0"), "unet-steps"),
        (("--pool", "3"), "pool"),
        (("--threads", "0"), "threads"),
        (("--start-from", "nonsense"), "nonsense"),
    ],
)
def test_mistakes_leave_nothing_behind(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / "run"), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_sizes_is_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = weights_loader.save(small_pipeline(), tmp_path / "other")
    assert main(["train", str(tmp_path / "run"), "--start-from", str(other), "--vae-minutes", "1"]) == 3
    assert "other sizes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minisd"]
    done = subprocess.run([*command, "train", tmp_path / "run", *SHORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("try: minisd") == 1
    weights_loader.load(tmp_path / "run" / "model")


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("mine")
    assert main(["train", str(tmp_path / "run")]) == 2
    assert "is a file" in capsys.readouterr().err
