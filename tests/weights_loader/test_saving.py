"""Saving a model over another: the target is wholly the one or the other, and nothing of the old one stays."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.saved_models import same_weights
from support.small import small_pipeline, small_tokenizer
from support.small_clip import clip_like, oracle_clip

import weights_loader
from minisd.cli import main
from minisd.errors import InputError, OutputError
from minisd.models import CLIP
from minisd.pipeline import StableDiffusion

PARTS = ("unet", "vae", "text_encoder")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def changed(sd: StableDiffusion) -> StableDiffusion:
    """The pipeline with other weights."""
    with torch.no_grad():
        for name in PARTS:
            for parameter in getattr(sd, name).parameters():
                parameter += 0.001
    return sd


def small_clip() -> CLIP:
    return clip_like(oracle_clip("gelu", vocab_size=len(small_tokenizer())))


@pytest.fixture
def models() -> tuple[StableDiffusion, StableDiffusion]:
    return small_pipeline(), changed(small_pipeline())


def which(target: Path, models: tuple[StableDiffusion, ...]) -> int:
    """The number of the model that a target is, wholly."""
    loaded = weights_loader.load(target, tokenizer=models[0].tokenizer if target.is_file() else None)
    (number,) = (i for i, model in enumerate(models) if same_weights(loaded, model))
    return number


def in_process(work: Callable[[], object]) -> int:
    """Do something in a process of its own; its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except OutputError:
            os._exit(OutputError.exit_code)
        finally:
            os._exit(1)
    return pid


@needs_fork
@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path: Path, models: tuple[StableDiffusion, ...], layout: str, kills: int) -> None:
    chance = random.Random(kills)
    target = tmp_path / ("m" if layout == "diffusers" else "m.safetensors")

    def save(number: int) -> None:
        torch.set_num_threads(1)
        weights_loader.save(models[number], target, layout=layout, overwrite=True)

    save(0)
    begin = time.perf_counter()
    save(0)
    length = time.perf_counter() - begin
    killed, now = 0, 0
    while killed < kills:
        pid = in_process(partial(save, 1 - now))
        time.sleep(chance.random() * 1.2 * length)
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        if target.exists():  # else killed between two renames; the next save repairs it
            now = which(target, models)
    save(1)
    assert which(target, models) == 1
    assert os.listdir(tmp_path) == [target.name]


@needs_fork
def test_two_writers_at_once(tmp_path: Path, models: tuple[StableDiffusion, ...]) -> None:
    """One of them is refused, or is later; the model is never a mixture."""
    weights_loader.save(models[0], tmp_path / "m")
    for _ in range(3):
        pids = [in_process(lambda i=i: weights_loader.save(models[i], tmp_path / "m", overwrite=True)) for i in (0, 1)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert set(codes) <= {0, OutputError.exit_code}
        assert 0 in codes
        assert which(tmp_path / "m", models) in (0, 1)
        assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize(
    "error", [InputError("no"), OutputError("full"), OSError(28, "No space left"), KeyboardInterrupt()]
)
def test_an_error_at_a_later_part(
    tmp_path: Path, models: tuple[StableDiffusion, ...], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    weights_loader.save(models[0], tmp_path / "m")

    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr(models[1].tokenizer, "save", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        weights_loader.save(models[1], tmp_path / "m", overwrite=True)
    assert which(tmp_path / "m", models) == 0
    assert os.listdir(tmp_path) == ["m"]


def test_all_of_the_old_model_goes_and_all_else_stays(tmp_path: Path) -> None:
    """Variants, shards, an added word, a second encoder, the schedule of an upscaler, a CLIP; but no file of others."""
    folder, sd = tmp_path / "m", small_pipeline()
    weights_loader.save(small_pipeline(sd2=True), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    stale = [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.fp16.bin",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "tokenizer/added_tokens.json",
        "tokenizer/tokenizer.json",
        "low_res_scheduler/scheduler_config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/merges.txt",
    ]
    kept = ["README.md", "unet/notes.txt", "pictures/1.png", "safety_checker/model.safetensors", "unet/x.safetensors"]
    for name in (*stale, *kept):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(weights, folder / name)
    clip = small_clip()
    weights_loader.save_clip(clip, sd.tokenizer, folder / "clip")
    weights_loader.save(sd, folder, overwrite=True)
    weights_loader.save(sd, tmp_path / "new")
    files = {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}
    new = {each.relative_to(tmp_path / "new").as_posix() for each in (tmp_path / "new").rglob("*") if each.is_file()}
    assert files == new | set(kept)
    assert same_weights(weights_loader.load(folder), sd)
    with pytest.raises(InputError, match="fp16"):
        weights_loader.load(folder, variant="fp16")


def test_a_word_that_the_new_model_lacks_goes_with_the_old_one(tmp_path: Path) -> None:
    sd = small_pipeline()
    sd.tokenizer.add_token("<cat>")
    sd.tokenizer.save(tmp_path / "t")
    assert (tmp_path / "t" / "added_tokens.json").exists()
    (tmp_path / "t" / "mine.txt").write_text("mine")
    small_pipeline().tokenizer.save(tmp_path / "t")
    assert not (tmp_path / "t" / "added_tokens.json").exists()
    assert (tmp_path / "t" / "mine.txt").read_text() == "mine"


def test_a_model_is_saved_over_itself(tmp_path: Path, models: tuple[StableDiffusion, ...]) -> None:
    """Its weights are views of the very files that are replaced."""
    if sys.platform == "win32":
        pytest.skip("Windows keeps files that are mapped")
    weights_loader.save(models[0], tmp_path / "m")
    sd = changed(weights_loader.load(tmp_path / "m"))
    weights_loader.save(sd, tmp_path / "m", overwrite=True)
    assert which(tmp_path / "m", models) == 1
    assert same_weights(sd, models[1])
    again = weights_loader.load(tmp_path / "m")
    weights_loader.save(again, tmp_path / "m", dtype=torch.float16, overwrite=True)
    assert same_weights(again, models[1])


def test_a_clip_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_pipeline().tokenizer
    clip, folder = small_clip(), tmp_path / "clip"
    weights_loader.save_clip(clip, tokenizer, folder)
    (folder / "README.md").write_text("mine")
    (folder / "model.fp16.safetensors").write_text("old")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("weights_loader.clip.clip_json", lambda text, image: {"a": float("nan")})
        with pytest.raises(InputError):
            weights_loader.save_clip(clip, tokenizer, folder, dtype=torch.float16, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    weights_loader.save_clip(clip, None, folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
    }


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    sd = small_pipeline()
    clip = small_clip()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "unet").write_text("mine")
    for target in (tmp_path / "file" / "m", tmp_path / ("x" * 256), tmp_path / "a\0b", tmp_path / "m", None):
        for save in (
            lambda target: weights_loader.save(sd, target, overwrite=True),
            lambda target: weights_loader.save(sd, target, layout="ldm", overwrite=True),
            lambda target: weights_loader.save_clip(clip, None, target, overwrite=target != tmp_path / "m"),
            sd.tokenizer.save if target != tmp_path / "m" else lambda target: weights_loader.save(sd, target),
        ):
            with pytest.raises(OutputError) as caught:
                save(target)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
    assert (tmp_path / "m" / "unet").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "m"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_converting_keeps_the_stored_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    """Each weight its own, through both layouts; --dtype asks for another."""
    sd = small_pipeline()
    sd.unet.to(dtype)
    weights_loader.save(sd, tmp_path / "m")
    paths = [tmp_path / name for name in ("m", "m.safetensors", "again")]
    assert main(["convert", *map(str, paths[:2])]) == 0
    assert main(["convert", *map(str, paths[1:]), "--tokenizer", str(paths[0] / "tokenizer")]) == 0
    for path in paths:
        parts = weights_loader.inspect(path).components
        assert set(parts["unet"].dtypes) == {str(dtype).removeprefix("torch.")}
        assert set(parts["vae"].dtypes) == set(parts["text_encoder"].dtypes) == {"float32"}
    assert same_weights(weights_loader.load(paths[2]), weights_loader.load(paths[0]))
    assert main(["convert", str(paths[0]), str(paths[2]), "--dtype", "float16", "--overwrite"]) == 0
    assert set(weights_loader.inspect(paths[2]).components["vae"].dtypes) == {"float16"}
