"""Folders of pixel models: the parts in one directory, a folder saved twice, names of folders that do not exist."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.course_cells import close
from support.small import randomise

from minisd.errors import InputError, MinisdError, OutputError

SMALL = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(theirs: Any, folder: Path, seed: int = 0) -> Path:
    """A pipeline that the reference saved."""
    scheduler = theirs.DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500)
    theirs.DDPMPipeline(randomise(theirs.UNet2DModel(**SMALL), seed), scheduler).save_pretrained(folder)
    return folder


def make_flat(folder: Path, keep_index: bool) -> Path:
    """Move the files of the parts to the root, as the oldest models on the hub have them."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    if not keep_index:
        (folder / "model_index.json").unlink()
    return folder


@pytest.fixture
def flat(theirs: Any, tmp_path: Path) -> Path:
    return make_flat(write(theirs, tmp_path / "flat"), keep_index=False)


def images(pipe: Any, steps: int = 3) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    found = torch.from_numpy(
        pipe(batch_size=2, num_inference_steps=steps, generator=generator, output_type="np").images
    )
    assert found.std() > 0.05
    return found


@torch.no_grad()
def outputs(unet: Any) -> torch.Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return unet(x, torch.tensor([3, 400])).sample


@pytest.mark.parametrize("keep_index", [True, False])
def test_the_parts_in_one_directory(ours: Any, theirs: Any, tmp_path: Path, keep_index: bool) -> None:
    """The reference reads the parts of such a folder; the whole only with model_index.json."""
    folder = str(make_flat(write(theirs, tmp_path / "flat"), keep_index))
    unet, scheduler = theirs.UNet2DModel.from_pretrained(folder), theirs.DDPMScheduler.from_pretrained(folder)
    expected = theirs.DDPMPipeline.from_pretrained(folder) if keep_index else theirs.DDPMPipeline(unet, scheduler)
    close(outputs(ours.UNet2DModel.from_pretrained(folder)), outputs(unet), 1e-5)
    pipe = ours.DDPMPipeline.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    close(images(pipe), images(expected), 1e-5)
    assert pipe.unet.dtype == torch.float32
    assert ours.DDPMPipeline.from_pretrained(folder, torch_dtype=torch.float16).unet.dtype == torch.float16


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("method", ["from_pretrained", "from_config"])
@pytest.mark.parametrize("is_flat", [True, False])
def test_only_the_scheduler(ours: Any, theirs: Any, tmp_path: Path, name: str, method: str, is_flat: bool) -> None:
    """By the folder's name alone, or with subfolder="scheduler"; the text of the path and the path."""
    folder = write(theirs, tmp_path / "model")
    options = {"subfolder": "scheduler"}
    if is_flat:
        make_flat(folder, keep_index=True)
        options = {}
    expected = getattr(theirs, name).from_pretrained(str(folder), **options)
    for source in (str(folder), folder):
        scheduler = getattr(getattr(ours, name), method)(source, **options)
        close(scheduler.alphas_cumprod, expected.alphas_cumprod, 1e-5)
        for key in ("num_train_timesteps", "beta_schedule", "prediction_type"):
            assert scheduler.config[key] == expected.config[key]


def test_the_scheduler_of_a_text_model(ours: Any, theirs: Any, model: str) -> None:
    scheduler = ours.DDPMScheduler.from_config(model, subfolder="scheduler")
    expected = theirs.DDPMScheduler.from_config(theirs.DDPMScheduler.load_config(model, subfolder="scheduler"))
    close(scheduler.alphas_cumprod, expected.alphas_cumprod, 1e-5)
    assert scheduler.config.prediction_type == expected.config.prediction_type == "v_prediction"
    with pytest.raises(InputError, match="subfolder is 'unet', expected 'scheduler'"):
        ours.DDPMScheduler.from_config(model, subfolder="unet")


def test_what_a_flat_folder_lacks(ours: Any, flat: Path) -> None:
    (flat / WEIGHTS).unlink()
    with pytest.raises(MinisdError, match="has no weights"):
        ours.DDPMPipeline.from_pretrained(flat)
    (flat / "config.json").unlink()
    with pytest.raises(MinisdError, match=r"has no config\.json"):
        ours.UNet2DModel.from_pretrained(flat)
    (flat / "scheduler_config.json").unlink()
    with pytest.raises(MinisdError, match=r"has no scheduler/scheduler_config\.json"):
        ours.DDPMScheduler.from_pretrained(flat)


def test_saved_twice(ours: Any, theirs: Any, tmp_path: Path) -> None:
    """The second model replaces the first with its variants and shards; other files stay; both libraries read it."""
    target = tmp_path / "mine"
    first = ours.DDPMPipeline.from_pretrained(write(theirs, tmp_path / "a"))
    first.save_pretrained(target)
    stale = ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "vae/config.json")
    kept = ("samples/1.png", "unet/notes.txt")
    for name in (*stale, *kept):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(b"x")
    second = ours.DDPMPipeline.from_pretrained(write(theirs, tmp_path / "b", seed=1))
    second.scheduler = ours.DDIMScheduler.from_config(second.scheduler.config)
    second.save_pretrained(str(target))
    files = {each.relative_to(target).as_posix() for each in target.rglob("*") if each.is_file()}
    model_files = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", f"unet/{WEIGHTS}"}
    assert files == model_files | set(kept)
    assert json.loads((target / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]
    expected = images(second)
    assert (images(first) - expected).abs().max() > 0.1
    close(images(ours.DDIMPipeline.from_pretrained(target)), expected, 1e-5)
    close(images(theirs.DDIMPipeline.from_pretrained(str(target))), expected, 1e-5)


def test_saved_over_a_flat_folder(ours: Any, theirs: Any, flat: Path, tmp_path: Path) -> None:
    """What is loaded afterwards is the new model, both its network and its scheduler."""
    pipe = ours.DDPMPipeline.from_pretrained(write(theirs, tmp_path / "other", seed=1))
    pipe.scheduler = ours.DDPMScheduler(num_train_timesteps=700)
    pipe.save_pretrained(flat)
    again = ours.DDPMPipeline.from_pretrained(flat)
    assert again.scheduler.num_train_timesteps == 700
    close(images(again), images(theirs.DDPMPipeline.from_pretrained(str(flat))), 1e-5)


def test_saved_over_itself(ours: Any, theirs: Any, tmp_path: Path) -> None:
    """The weights in memory may be views of the file that is replaced."""
    folder = write(theirs, tmp_path / "a")
    pipe = ours.DDPMPipeline.from_pretrained(folder)
    expected = images(theirs.DDPMPipeline.from_pretrained(str(folder)))
    pipe.save_pretrained(folder)
    close(images(pipe), expected, 1e-5)
    close(images(ours.DDPMPipeline.from_pretrained(folder)), expected, 1e-5)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_at_the_last_part(
    ours: Any, theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The folder keeps the old model, wholly, and nothing lies beside it."""
    pipe = ours.DDPMPipeline.from_pretrained(write(theirs, tmp_path / "a"))
    pipe.save_pretrained(tmp_path / "out" / "mine")
    expected = images(pipe)

    def fail(self: Any) -> None:
        raise error

    other = ours.DDPMPipeline.from_pretrained(write(theirs, tmp_path / "b", seed=1))
    monkeypatch.setattr(type(other.scheduler.core), "to_config", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        other.save_pretrained(tmp_path / "out" / "mine")
    monkeypatch.undo()
    assert os.listdir(tmp_path / "out") == ["mine"]
    close(images(ours.DDPMPipeline.from_pretrained(tmp_path / "out" / "mine")), expected, 1e-5)


def test_a_file_is_no_target(ours: Any, theirs: Any, tmp_path: Path) -> None:
    pipe = ours.DDPMPipeline.from_pretrained(write(theirs, tmp_path / "a"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file, expected a folder"):
        pipe.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("name", ["DDPMPipeline", "UNet2DModel", "AutoencoderKL", "CLIPTokenizer", "DDIMScheduler"])
def test_the_home_of_nobody(ours: Any, name: str) -> None:
    """pathlib raises RuntimeError for a user who does not exist; the library names the source."""
    with pytest.raises(InputError, match="'~nobody-here/model' is no known model, no file or folder"):
        getattr(ours, name).from_pretrained("~nobody-here/model")


def test_a_folder_in_the_home(ours: Any, flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(flat.parent))
    monkeypatch.setenv("USERPROFILE", str(flat.parent))
    shutil.copytree(Path(ours.__file__).parents[1] / "assets" / "sticker" / "vae", flat.parent / "vae")
    assert ours.UNet2DModel.from_pretrained("~/flat").config.sample_size == 8
    assert len(ours.DDPMScheduler.from_pretrained("~/flat")) == 500
    assert ours.AutoencoderKL.from_pretrained("~/vae").core.config.latent_channels == 4
