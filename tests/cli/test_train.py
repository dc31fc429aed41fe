"""`minisd train`: from scratch in seconds, stage by stage, and further; mistakes are found before any training."""

import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.small import small_pipeline

import weights_loader
from minisd.cli import main
from minisd.sticker.training import text_encoder
from minisd.sticker.training.preview import train_preview
from minisd.sticker.training.stages import STAGES

SHORT = ("--minutes", "0.02", "--pool", "64")


@pytest.fixture(autouse=True)
def few_test_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the accuracy that is printed after the training."""
    few = partial(text_encoder.probe_accuracy, count=20)
    monkeypatch.setattr(text_encoder, "probe_accuracy", few)


def train(stage: str, folder: Path, *arguments: str) -> int:
    return main(["train", stage, str(folder), *SHORT, *arguments])


@pytest.mark.slow
def test_all_stages_from_scratch_and_one_from_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("all", tmp_path / "first") == 0
    model = tmp_path / "first" / "model"
    printed = capsys.readouterr().out
    assert str(model) in printed
    assert printed.endswith(" minutes, the UNet on cpu\n")
    assert {path.name for path in (tmp_path / "first").glob("*.pt")} == {f"{stage}.pt" for stage in STAGES}
    assert sum(stage.share for stage in STAGES.values()) == pytest.approx(1)  # so that --minutes is the total
    assert Image.open(tmp_path / "first" / "vae.png").width > 512
    assert Image.open(tmp_path / "first" / "unet.png").width > 256
    first = weights_loader.load(model)
    assert first("a red circle", num_inference_steps=1).images[0].size == (128, 128)
    clip, tokenizer = weights_loader.load_clip(model)
    texts = clip.embed_texts(tokenizer(["a red circle", "a blue square"]))
    assert texts.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert torch.equal(clip.text_encoder.final_norm.weight, first.text_encoder.final_norm.weight)

    assert train("unet", tmp_path / "second", "--start-from", str(model)) == 0
    second = weights_loader.load(tmp_path / "second" / "model")
    assert torch.equal(second.vae.decoder.conv_in.weight, first.vae.decoder.conv_in.weight)
    assert not torch.equal(second.unet.conv_in.weight, first.unet.conv_in.weight)

    clip.image_encoder.position_embedding.weight.data += 1  # a change that one step of training cannot undo
    weights_loader.save_clip(clip, None, model / "clip", overwrite=True)
    assert train("clip", tmp_path / "second", "--start-from", str(model)) == 0
    again, _ = weights_loader.load_clip(tmp_path / "second" / "model")
    moved = again.image_encoder.position_embedding.weight - clip.image_encoder.position_embedding.weight
    assert 0 < moved.abs().max() < 0.01

    assert train("unet", tmp_path / "second", "--start-from", str(model)) == 0  # the model is written again
    kept, _ = weights_loader.load_clip(tmp_path / "second" / "model")
    assert torch.equal(kept.logit_scale, again.logit_scale)
    assert not list(tmp_path.rglob(".minisd-*"))

    shorter = ("--minutes", "0.01")  # than the stage was trained, so that it is finished
    assert train("unet", tmp_path / "first", *shorter) == 0  # the model keeps its larger autoencoder
    again_first = weights_loader.load(model)
    assert again_first.vae.config == first.vae.config

    assert train("vae", tmp_path / "third", "--start-from", str(model)) == 2
    assert "train 'vae128'" in capsys.readouterr().err
    shutil.copy(tmp_path / "second" / "unet.pt", tmp_path / "unet.pt")
    assert train("vae", tmp_path) == 2  # the UNet fits its own autoencoder
    assert "another vae" in capsys.readouterr().err


@pytest.mark.slow
def test_stages_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("unet", tmp_path / "run") == 2
    assert "no vae.pt" in capsys.readouterr().err
    for stage in ("text", "vae", "unet", "vae128", "preview", "clip"):
        assert train(stage, tmp_path / "run") == 0
    weights_loader.load_clip(tmp_path / "run" / "model")
    assert weights_loader.load(tmp_path / "run" / "model").preview_decoder is not None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--minutes", "0"), "--minutes is 0.0"),
        (("--steps", "0"), "--steps is 0"),
        (("--pool", "3"), "--pool is 3"),
        (("--threads", "0"), "--threads is 0"),
        (("--start-from", "nonsense"), "nonsense"),
    ],
)
def test_mistakes_leave_nothing_behind(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "all", str(tmp_path / "run"), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unavailable_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("all", tmp_path / "run", "--device", "cuda:17") == 7
    assert "cuda:17" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_sizes_is_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = weights_loader.save(small_pipeline(), tmp_path / "other")
    assert train("all", tmp_path / "run", "--start-from", str(other)) == 3
    assert "other sizes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minisd"]
    command += ["train", "all", str(tmp_path / "run"), *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("try: minisd") == 1
    weights_loader.load(tmp_path / "run" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dreambooth", "lora", "distill"])
def test_two_processes_fine_tune(stage: str, tmp_path: Path) -> None:
    """The first process draws the images of the class and saves the result; the other one waits, and trains along."""
    weights_loader.save(small_pipeline(), tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "pictures" / f"{colour}.png")
    options = [
        "--pictures",
        str(tmp_path / "pictures"),
        "--prompt",
        "a sks cat",
        "--start-from",
        str(tmp_path / "model"),
    ]
    options += ["--steps", "2"]
    if stage == "distill":
        options += ["--from", "4", "--to", "2"]
    else:
        options += ["--class-prompt", "a cat", "--class-images", "3", "--text-encoder"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minisd"]
    done = subprocess.run(
        [*command, "train", stage, str(tmp_path / "run"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("try: minisd") == 1
    if stage != "distill":
        assert done.stderr.count("class images: 3 of 3 drawn") + done.stdout.count("class images: 3 of 3 drawn") == 1
        assert len(list((tmp_path / "run").glob("class-*/*.png"))) == 3
    if stage == "dreambooth":
        weights_loader.load(tmp_path / "run" / "dreambooth")
    if stage == "lora":
        weights_loader.load_lora(small_pipeline(), tmp_path / "run" / "lora.safetensors")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("mine")
    assert train("all", tmp_path / "run") == 2
    assert "is a file" in capsys.readouterr().err


def test_a_run_is_continued_as_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other pictures, captions, token, word, rank or model: the differences, and the result stays as it is."""
    for name, change in (("model", 0.0), ("other", 0.01)):
        sd = small_pipeline()
        sd.unet.conv_in.weight.data += change
        weights_loader.save(sd, tmp_path / name)
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), name).save(tmp_path / name / "1.png")
    usual = {"--start-from": tmp_path / "model", "--pictures": tmp_path / "red", "--prompt": "a <x> <y>", "--steps": 1}
    embedding = {**usual, "--token": "<x>", "--like": "cat"}

    def run(stage: str, arguments: dict[str, object]) -> int:
        return main(
            ["train", stage, str(tmp_path / "run"), *(str(each) for pair in arguments.items() for each in pair)]
        )

    for stage, first, others in [
        ("lora", {**usual, "--rank": 2}, {"--rank": 3}),
        ("embedding", embedding, {"--token": "<y>", "--like": "dog"}),
    ]:
        others |= {"--pictures": tmp_path / "blue", "--start-from": tmp_path / "other", "--prompt": "a dog <x> <y>"}
        assert run(stage, first) == 0
        result = tmp_path / "run" / f"{stage}.safetensors"
        before = result.read_bytes()
        capsys.readouterr()
        for option, value in others.items():
            assert run(stage, {**first, option: value, "--steps": 2}) == 9
            words = {"--pictures": "pictures and captions", "--prompt": "pictures and captions"}
            name = words.get(option, option.removeprefix("--").replace("start-from", "start model"))
            complaint = capsys.readouterr().err
            assert f"is a run of something else: {name} is " in complaint
            assert complaint.count("\n") == 1
            assert result.read_bytes() == before
        assert run(stage, {**first, "--steps": 2}) == 0
        assert result.read_bytes() != before


def test_a_stage_is_continued_from_the_same_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("text", tmp_path / "run") == 0
    before = (tmp_path / "run" / "text.pt").read_bytes()
    for stage in ("text", "all"):  # of "all" no other stage is trained first
        assert train(stage, tmp_path / "run", "--start-from", "sticker") == 9
        assert "text.pt is a run of something else: start model is " in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"text.pt"}
    assert (tmp_path / "run" / "text.pt").read_bytes() == before


def test_a_stage_is_not_trained_further_below_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("text", tmp_path / "run", "--steps", "1") == 0
    shutil.copy(tmp_path / "run" / "text.pt", tmp_path / "run" / "clip.pt")
    assert train("text", tmp_path / "run", "--steps", "1") == 0  # nothing is left to train
    assert train("text", tmp_path / "run", "--steps", "2") == 9
    assert "clip.pt was trained with text.pt as it is" in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "text.pt", weights_only=True)["step"] == 1


def test_an_interruption_saves_the_run_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(model: object, average: object, decay: float) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("minisd.training.trainer._update_average", press)
    assert train("text", tmp_path / "run", "--steps", "3") == 130
    path = tmp_path / "run" / "text.pt"
    said = f"minisd: interrupted at step 1; {path} has the run, and the same command continues it\n"
    assert capsys.readouterr().err == said
    assert torch.load(path, weights_only=True)["step"] == 1


def test_a_preview_decoder_for_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other networks stay, another stage keeps it, and a new autoencoder needs a new one."""
    monkeypatch.setattr("minisd.sticker.training.stages.train_preview", partial(train_preview, pool=2))
    own, arguments = weights_loader.load("sticker"), ("--steps", "2", "--start-from", "sticker")
    assert own.preview_decoder is not None
    assert main(["train", "preview", str(tmp_path), *arguments]) == 0
    model = weights_loader.load(tmp_path / "model")
    assert model.preview_decoder is not None
    assert model.preview_decoder.config == own.preview_decoder.config
    assert not torch.equal(model.preview_decoder.conv_in.weight, own.preview_decoder.conv_in.weight)
    assert torch.equal(model.vae.decoder.conv_in.weight, own.vae.decoder.conv_in.weight)
    assert Image.open(tmp_path / "preview.png").width > 512
    (tmp_path / "preview.pt").unlink()

    for stage, kept in (("text", True), ("vae128", False)):
        assert main(["train", stage, str(tmp_path / stage), "--steps", "1", "--start-from", "sticker"]) == 0
        again = weights_loader.load(tmp_path / stage / "model").preview_decoder
        assert (again is not None) == kept
        if again is not None:
            assert torch.equal(again.conv_in.weight, own.preview_decoder.conv_in.weight)


def test_folders_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("file/run", "x" * 256):
        assert train("text", tmp_path / name) == 8
        assert capsys.readouterr().err.count("\n") == 1
