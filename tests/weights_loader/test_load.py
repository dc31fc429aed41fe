"""Model folders that the reference saved and minisd loads, and in reverse: the same image."""

import mmap
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.saved_models import (
    LATENTS,
    PROMPTS,
    TEXT_FILE,
    UNET_FILE,
    VAE_FILE,
    Saved,
    assert_same_picture,
    copy,
    edit,
    noise,
    picture_of_oracle,
    picture_of_ours,
    same_weights,
    shard,
)
from support.small import small_pipeline
from torch import Tensor

import weights_loader
from minisd.errors import (
    InputError,
    MismatchError,
    OutputError,
)
from minisd.pipeline import Defaults
from minisd.schedulers import DDIM, PNDM
from weights_loader.formats.weight_file import WeightFile

diffusers = pytest.importorskip("diffusers")


# Folders that the reference wrote.


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "a cat", "guidance_scale": 7.5},
        {"prompt": "a cat", "guidance_scale": 1.0},
        {**PROMPTS, "guidance_scale": 3.0, "num_inference_steps": 5},
        {
            "prompt": ["a red circle", "blue"],
            "negative_prompt": ["a", "dog above"],
            "num_images_per_prompt": 2,
        },
        {"prompt": "! ! above", "num_inference_steps": 1},
    ],
    ids=["guided", "unguided", "batch", "two a prompt", "one step"],
)
def test_the_references_picture(saved: Saved, arguments: dict[str, Any]) -> None:
    assert_same_picture(weights_loader.load(saved.folder), saved.oracle, **arguments)


@pytest.mark.parametrize("size", [(16, 16), (4, 20), (12, 4)])
def test_the_references_picture_at_other_sizes(sd1: Saved, size: tuple[int, int]) -> None:
    assert_same_picture(weights_loader.load(sd1.folder), sd1.oracle, size, prompt="a cat")


def test_guidance_of_zero_is_the_negative_prompt_alone(saved: Saved) -> None:
    """The reference does not guide below 1, so it is asked for the negative prompt."""
    x = noise(1, 4, 8, 12)
    got = picture_of_ours(
        weights_loader.load(saved.folder),
        x,
        "latent",
        prompt="a cat",
        negative_prompt="blurry",
        guidance_scale=0,
    )
    expected = picture_of_oracle(saved.oracle, x, "latent", prompt="blurry", guidance_scale=1)
    assert np.abs(got - expected).max() <= LATENTS * np.abs(expected).max()


def test_eta(sd2: Saved) -> None:
    """The reference draws the noise of a batch from one generator: so do we, when given one."""
    x = noise(1, 4, 8, 12)
    runs = (
        run(each, x, "latent", prompt="a cat", eta=0.7, generator=torch.Generator().manual_seed(5))
        for run, each in ((picture_of_ours, weights_loader.load(sd2.folder)), (picture_of_oracle, sd2.oracle))
    )
    got, expected = runs
    assert np.abs(got - expected).max() <= LATENTS * np.abs(expected).max()


def test_schedulers_and_tokenizers_come_with_the_folder(sd1: Saved, sd2: Saved) -> None:
    first, second = weights_loader.load(sd1.folder), weights_loader.load(sd2.folder)
    assert isinstance(first.scheduler, PNDM)
    assert isinstance(second.scheduler, DDIM)
    assert first.scheduler.schedule.prediction_type == "epsilon"
    assert second.scheduler.schedule.prediction_type == "v_prediction"
    assert first.tokenizer.pad_id == first.tokenizer.eos_id
    assert second.tokenizer.pad_id == 0
    for sd, saved in ((first, sd1), (second, sd2)):
        text = ["a cat above a dog!", ""]
        theirs = saved.oracle.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert torch.equal(sd.tokenizer(text), theirs)


def test_prediction_type_can_be_given(sd1: Saved) -> None:
    sd = weights_loader.load(sd1.folder, prediction_type="v_prediction")
    assert sd.scheduler.schedule.prediction_type == "v_prediction"
    with pytest.raises(InputError, match="prediction_type"):
        weights_loader.load(sd1.folder, prediction_type="velocity")


def test_pickled_weights(sd1: Saved, tmp_path: Path) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    for file in (UNET_FILE, VAE_FILE, TEXT_FILE):
        path = folder / file
        name = "pytorch_model.bin" if file == TEXT_FILE else "diffusion_pytorch_model.bin"
        torch.save(safetensors.torch.load_file(path), path.with_name(name))
        path.unlink()
    assert same_weights(weights_loader.load(folder), weights_loader.load(sd1.folder))


def test_half_precision_variant(sd1: Saved, tmp_path: Path) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    for file in (UNET_FILE, VAE_FILE, TEXT_FILE):
        path = folder / file
        half = {name: tensor.half() for name, tensor in safetensors.torch.load_file(path).items()}
        if file == TEXT_FILE:
            name = next(name for name in half if name.endswith("token_embedding.weight"))
            half[name.replace("token_embedding.weight", "position_ids")] = torch.arange(77)[None]
        safetensors.torch.save_file(half, path.with_suffix(".fp16.safetensors"))
    full, half_sd = weights_loader.load(folder), weights_loader.load(folder, variant="fp16")
    assert half_sd.dtype == torch.float32  # as asked for, whatever the file's
    for name, parameter in full.unet.state_dict().items():
        assert torch.equal(half_sd.unet.state_dict()[name], parameter.half().float())
    assert weights_loader.load(folder, variant="fp16", dtype=torch.float16).dtype == torch.float16
    with pytest.raises(InputError, match=r"variant 'bf16'.*fp16"):
        weights_loader.load(folder, variant="bf16")
    (folder / UNET_FILE).unlink()
    with pytest.raises(MismatchError, match="variant='fp16'"):
        weights_loader.load(folder)


def test_shards(sd1: Saved, tmp_path: Path) -> None:
    folder = shard(sd1, tmp_path / "m")
    assert same_weights(weights_loader.load(folder), weights_loader.load(sd1.folder))


def test_old_names_of_the_autoencoders_attention(sd1: Saved, tmp_path: Path) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str) -> str:
        for ours, old in new.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{old}.")
        return name

    edit(folder / VAE_FILE, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    assert "encoder.mid_block.attentions.0.query.weight" in safetensors.torch.load_file(folder / VAE_FILE)
    assert same_weights(weights_loader.load(folder), weights_loader.load(sd1.folder))


def test_text_encoder_without_its_prefix_and_with_position_ids(sd1: Saved, tmp_path: Path) -> None:
    right = weights_loader.load(sd1.folder)
    for strip in (False, True):
        folder = copy(sd1.folder, tmp_path / f"m{strip}")

        def change(tensors: dict[str, Tensor], strip: bool = strip) -> dict[str, Tensor]:
            names = {name if name.startswith("text_model.") else f"text_model.{name}": name for name in tensors}
            full = {name: tensors[old] for name, old in names.items()}
            full["text_model.embeddings.position_ids"] = torch.arange(77)[None]
            return {name.removeprefix("text_model.") if strip else name: tensor for name, tensor in full.items()}

        edit(folder / TEXT_FILE, change)
        assert same_weights(weights_loader.load(folder), right)


def test_tensors_are_views_of_the_file(sd1: Saved) -> None:
    """Loading in the file's own dtype copies nothing; a converted one is in memory of its own."""
    sd = weights_loader.load(sd1.folder)
    before = (sd1.folder / UNET_FILE).read_bytes()
    spans = [(p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in sd.unet.parameters()]
    assert max(end for _, end in spans) - min(start for start, _ in spans) <= len(before)
    with torch.no_grad():
        sd.unet.conv_in.weight.zero_()
    assert (sd1.folder / UNET_FILE).read_bytes() == before
    assert weights_loader.load(sd1.folder).unet.conv_in.weight.abs().max() > 0


def _resident_bytes(path: Path) -> int:
    """The memory of this process that holds pages of a mapped file."""
    lines, total, inside = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if not line.split()[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="other systems free the pages of files when memory is short")
def test_what_was_converted_is_not_kept_beside_the_copies(sd1: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of the file are freed after each piece, and the weights are those of the file."""
    path, kept = sd1.folder / UNET_FILE, []
    forget = WeightFile.forget

    def watched(file: WeightFile) -> None:
        before = _resident_bytes(file.path)
        forget(file)
        kept.append((before, _resident_bytes(file.path)))

    monkeypatch.setattr(WeightFile, "forget", watched)
    monkeypatch.setattr("weights_loader.build.FORGET_AFTER", path.stat().st_size // 4)
    half = weights_loader.load(sd1.folder, dtype=torch.bfloat16)
    pieces = len(kept)
    assert pieces >= 3
    assert all(before > after and after <= mmap.PAGESIZE for before, after in kept)  # one page tells the file's size
    exact = weights_loader.load(sd1.folder)  # views of the file
    assert len(kept) == pieces
    pairs = zip(exact.unet.parameters(), half.unet.parameters(), strict=True)
    assert all(torch.equal(ours.bfloat16(), theirs) for ours, theirs in pairs)


# Folders that we wrote.


def test_our_folder_in_the_reference(saved: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(saved.folder)
    assert weights_loader.save(sd, tmp_path / "m") == tmp_path / "m"
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "m")
    theirs.set_progress_bar_config(disable=True)
    assert theirs.safety_checker is None
    x = noise(2, 4, 8, 12)
    got, expected = (picture_of_oracle(each, x, **PROMPTS) for each in (theirs, saved.oracle))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
@pytest.mark.parametrize("sd2_", [False, True])
def test_saved_and_loaded_is_equal_in_every_bit(tmp_path: Path, layout: str, sd2_: bool) -> None:
    sd = small_pipeline(sd2_)
    sd.defaults = Defaults(num_inference_steps=7, guidance_scale=2.5)
    target = tmp_path / ("m" if layout == "diffusers" else "m.safetensors")
    weights_loader.save(sd, target, layout=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = weights_loader.load(target, tokenizer=None if layout == "diffusers" else sd.tokenizer)
    assert same_weights(sd, again)
    assert again.tokenizer.pad == sd.tokenizer.pad
    second = tmp_path / ("n" if layout == "diffusers" else "n.safetensors")
    weights_loader.save(again, second, layout=layout)
    files = [f.relative_to(target) for f in target.rglob("*") if f.is_file()] if target.is_dir() else [Path()]
    assert all((target / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_saving_converts_and_refuses_to_overwrite(tmp_path: Path) -> None:
    sd = small_pipeline()
    weights_loader.save(sd, tmp_path / "m", dtype=torch.float16)
    assert weights_loader.inspect(tmp_path / "m").components["unet"].dtypes == {"float16": len(sd.unet.state_dict())}
    assert sd.dtype == torch.float32
    before = (tmp_path / "m" / UNET_FILE).read_bytes()
    with pytest.raises(OutputError, match="not empty"):
        weights_loader.save(sd, tmp_path / "m")
    assert (tmp_path / "m" / UNET_FILE).read_bytes() == before
    weights_loader.save(sd, tmp_path / "m", overwrite=True)
    assert same_weights(weights_loader.load(tmp_path / "m"), sd)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        weights_loader.save(sd, tmp_path / "file")
    weights_loader.save(sd, tmp_path / "m.safetensors", layout="ldm")
    with pytest.raises(OutputError):
        weights_loader.save(sd, tmp_path / "m.safetensors", layout="ldm")
    with pytest.raises(InputError, match="layout is 'onnx'"):
        weights_loader.save(sd, tmp_path / "x", layout="onnx")
    with pytest.raises(InputError, match="dtype"):
        weights_loader.save(sd, tmp_path / "x", dtype=torch.int8)


def test_loading_does_not_import_the_compiler() -> None:
    """Initialising on the meta device would, for seconds; see build.NoInitialisation."""
    code = "import sys, weights_loader; weights_loader.load('sticker'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
