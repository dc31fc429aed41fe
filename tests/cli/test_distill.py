"""`minisd train distill`: students with fewer steps, a student that reads the guidance scale, both; mistakes."""

from pathlib import Path

import pytest
import torch
from support.small import small_pipeline
from support.training_images import training_images

import weights_loader
from minisd import images
from minisd.cli import distill, main
from minisd.pipeline import Defaults


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model, and two images with captions."""
    monkeypatch.setattr(distill, "BATCH", 2)
    sd = small_pipeline(sd2=True)
    sd.defaults = Defaults(num_inference_steps=8, guidance_scale=3.0)
    weights_loader.save(sd, tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for name, image in zip("ab", images.to_pil(training_images("a cat", 2).pixels), strict=True):
        images.save(image, tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def run(folder: Path, *arguments: str, start: str = "model", steps: str = "2") -> int:
    options = ["--start-from", str(folder / start), "--pictures", str(folder / "pictures"), "--prompt", "a cat"]
    return main(["train", "distill", str(folder / "run"), *options, "--steps", steps, *arguments])


def test_each_student_begins_as_the_one_before_and_is_saved(folder: Path) -> None:
    assert run(folder, "--from", "8", "--to", "2") == 0
    first, second = (weights_loader.load(folder / "run" / f"steps-{steps}") for steps in (4, 2))
    for sd, steps in ((first, 4), (second, 2)):
        assert (sd.defaults.num_inference_steps, sd.defaults.guidance_scale) == (steps, 1.0)
        assert len([*sd.denoise("a cat", seed=1)]) == steps
    assert first.scheduler.grid(4).source[:1] == (999,)  # trailing: from pure noise
    start = weights_loader.load(folder / "model").unet.conv_in.weight
    a, b = (sd.unet.conv_in.weight for sd in (first, second))
    assert 0 < (a - start).abs().max() < (b - start).abs().max() < 0.1
    assert run(folder, "--from", "8", "--to", "2") == 0  # finished runs are not trained again
    assert torch.equal(weights_loader.load(folder / "run" / "steps-2").unet.conv_in.weight, b)


def test_a_student_reads_the_scale_and_gets_students_of_its_own(folder: Path) -> None:
    assert run(folder, "--method", "guided", "--scales", "1,6") == 0
    sd = weights_loader.load(folder / "run" / "guided")
    assert sd.unet.config.guidance_width == distill.SMALL_WIDTH
    assert sd.defaults.guidance_scale == 3.0
    calls: list[int] = []
    sd.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    sd("a cat", seed=1, num_inference_steps=3)
    assert calls == [1, 1, 1]
    assert run(folder, "--from", "4", "--to", "2", "--scales", "1,6", start="run/guided") == 0
    fast = weights_loader.load(folder / "run" / "steps-2")
    assert fast.unet.config.guidance_width == distill.SMALL_WIDTH
    assert (fast.defaults.num_inference_steps, fast.defaults.guidance_scale) == (2, 3.0)


def test_mistakes_are_found_before_any_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--from", "32", "--to", "5"], "the steps are to become 5 from 32, expected to reach this by halving"),
        (["--method", "guided", "--scales", "8"], "--scales is '8', expected the smallest and the largest scale"),
        (["--method", "guided", "--scales", "8,1"], "--scales is 8,1, expected the smaller number first"),
        (["--method", "guided", "--from", "8"], "--from and --to are for the method progressive"),
        (["--method", "guided", "--guidance", "2"], "--guidance is for a student that learns one scale"),
        (["--scales", "1,4"], "--scales is for a student that reads the scale"),
        (["--from", "1000"], "--from is 1000, expected a whole number in 2..500"),
        (["--seed", "3"], "--seed is for full, dreambooth, lora, not for distill"),
        (["--batch", "0"], "--batch is 0, expected a whole number in 1.."),
        (["--ema-decay", "1"], "--ema-decay is 1.0, expected a number in 0..0.99999"),
        (["--guidance", "nan"], "guidance"),
    ):
        assert run(folder, *arguments) == 2
        assert message in capsys.readouterr().err
    assert not [*(folder / "run").glob("*")]
    assert main(["train", "distill", str(folder / "run")]) == 2
    assert "distill needs --start-from MODEL" in capsys.readouterr().err
    assert main(["train", "distill", str(folder / "run"), "--start-from", str(folder / "model")]) == 2
    assert "distill needs --pictures FOLDER" in capsys.readouterr().err


def test_a_run_is_continued_with_its_own_images_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--from", "4", "--to", "2", steps="1") == 0
    (folder / "pictures" / "b.png").unlink()
    assert run(folder, "--from", "4", "--to", "2") == 9
    assert "pictures and captions is" in capsys.readouterr().err
    assert run(folder, "--from", "4", "--to", "2", start="run/steps-2") == 2
    assert "is the teacher, and would be replaced" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_model_has_its_own_images(tmp_path: Path) -> None:
    options = ["--start-from", "sticker", "--from", "4", "--to", "2", "--pool", "64", "--steps", "1"]
    assert main(["train", "distill", str(tmp_path), *options]) == 0
    fast = weights_loader.load(tmp_path / "steps-2")
    assert fast.defaults.words
    assert len([*fast.denoise("a red circle", seed=1)]) == 2
