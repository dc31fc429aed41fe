"""Learned words and LoRAs on the course pipelines: files of weights_loader, against the reference."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from support.course_cells import close, picture
from support.lora_files import Change, apply
from support.saved_models import Saved, save_oracle
from torch import Tensor

import weights_loader
from minisd import course
from minisd.adapters import LowRank
from minisd.errors import InputError, MismatchError

OPTIONS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
WIDTH = 64


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A small SD 1 of the reference, with its folder."""
    return save_oracle(tmp_path_factory.mktemp("model"), sd2=False)


@pytest.fixture
def pipe(saved: Saved) -> Any:
    return course.StableDiffusionPipeline.from_pretrained(saved.folder)


@pytest.fixture
def oracle(saved: Saved) -> Any:
    return copy.deepcopy(saved.oracle)


def draw(pipe: Any, prompt: str = "a red cat", **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.from_numpy(pipe(prompt, generator=generator, **{**OPTIONS, **options}).images)


def vectors(n: int) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(2))


def write_lora(sd: Any, path: Path, rank: int = 2) -> Path:
    """A change of the attention's matrices, of a convolution and of a time embedding; the factor is not 1."""
    generator = torch.Generator().manual_seed(3)
    names = [name for name, _ in sd.unet.named_parameters() if name.endswith((".q.weight", ".out.weight"))]
    changes = {}
    for name in (*names, "time.linear1.weight", "conv_in.weight"):
        shape = sd.unet.get_parameter(name).shape
        down = torch.randn(rank, *shape[1:], generator=generator) / shape[1:].numel() ** 0.5
        up = torch.randn(shape[0], rank, *[1] * len(shape[2:]), generator=generator)
        changes[name] = LowRank(down, up, 0.5)
    weights_loader.save_lora(changes, sd.unet, path)
    return path


def changes_in(path: Path) -> dict[str, dict[str, Change]]:
    """What a file says in the reference's names, for `support.lora_files.apply`."""
    tensors = safetensors.torch.load_file(path)
    modules = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {
        "unet": {
            module.removeprefix("unet."): Change(
                tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"], None
            )
            for module in modules
        }
    }


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("token", [None, "<other>"])
def test_a_learned_word(pipe: Any, oracle: Any, tmp_path: Path, n: int, token: str | None) -> None:
    """The word in the file, or another; one vector, or several under one word."""
    path, word = tmp_path / "learned_embeds.safetensors", token or "<birb>"
    weights_loader.save_embedding("<birb>", vectors(n)[0] if n == 1 else vectors(n), path)
    size, plain = len(pipe.tokenizer), draw(pipe, f"a {word} cat")
    assert pipe.load_textual_inversion(str(path), token=token) is None
    oracle.load_textual_inversion(str(path), token=token)
    assert len(pipe.tokenizer) == len(oracle.tokenizer) == size + n
    table = pipe.text_encoder.get_input_embeddings().weight
    close(table[size:], vectors(n), 1e-5)
    close(table, oracle.text_encoder.get_input_embeddings().weight, 1e-5)
    for prompt in (f"a {word} cat", "a red cat"):
        mine, other = (p._encode_prompt(prompt, "cpu", 1, True, word) for p in (pipe, oracle))
        close(mine, other, 1e-5)
    images = draw(pipe, f"a {word} cat")
    close(images, draw(oracle, f"a {word} cat"), 1e-5)
    assert (images - plain).abs().max() > 0.01


def test_a_learned_word_in_each_pipeline(saved: Saved, oracle: Any, tmp_path: Path) -> None:
    """Image to image, the native pipeline, and a pipeline made of the same components know the word."""
    path = tmp_path / "learned_embeds.safetensors"
    weights_loader.save_embedding("<birb>", vectors(1)[0], path)
    oracle = diffusers.StableDiffusionImg2ImgPipeline(**oracle.components, requires_safety_checker=False)
    oracle.set_progress_bar_config(disable=True)
    oracle.load_textual_inversion(str(path))
    pipe = course.StableDiffusionImg2ImgPipeline.from_pretrained(saved.folder)
    pipe.load_textual_inversion(path)
    options = {"image": picture(32), "strength": 0.8}
    close(draw(pipe, "a <birb>", **options), draw(oracle, "a <birb>", **options), 1e-5)
    other = course.StableDiffusionPipeline(**pipe.components)
    expected = diffusers.StableDiffusionPipeline(**oracle.components, requires_safety_checker=False)
    expected.set_progress_bar_config(disable=True)
    close(draw(other, "a <birb>"), draw(expected, "a <birb>"), 1e-5)
    assert pipe.core.tokenizer("a <birb>").tolist() == other.tokenizer.core("a <birb>").tolist()
    with pytest.raises(InputError, match="<birb>"):
        other.load_textual_inversion(path)


def test_a_learned_word_is_saved(pipe: Any, tmp_path: Path) -> None:
    """Both libraries read the saved pipeline with its word."""
    path = tmp_path / "learned_embeds.safetensors"
    weights_loader.save_embedding("<birb>", vectors(1)[0], path)
    pipe.load_textual_inversion(path)
    pipe.save_pretrained(tmp_path / "model")
    expected = draw(pipe, "a <birb>")
    close(draw(course.StableDiffusionPipeline.from_pretrained(tmp_path / "model"), "a <birb>"), expected, 1e-5)
    other = diffusers.StableDiffusionPipeline.from_pretrained(str(tmp_path / "model"), safety_checker=None)
    other.set_progress_bar_config(disable=True)
    close(draw(other, "a <birb>"), expected, 1e-5)


def test_a_lora(pipe: Any, oracle: Any, tmp_path: Path) -> None:
    """The merged change equals the same change beside the reference's layers; removing it restores the weights."""
    path = write_lora(pipe.core, tmp_path / "pytorch_lora_weights.safetensors")
    plain = draw(pipe)
    lora = pipe.load_lora_weights(str(path))
    handles = apply({"unet": oracle.unet}, changes_in(path), 1.0)
    x, t, text = vectors(64).view(1, 4, 32, 32), torch.tensor(300), vectors(5)[None]
    with torch.no_grad():
        close(pipe.unet(x, t, text).sample, oracle.unet(x, t, text).sample, 1e-5)
    images = draw(pipe)
    close(images, draw(oracle), 1e-4)
    assert (images - plain).abs().max() > 0.05
    for handle in handles:
        handle.remove()
    apply({"unet": oracle.unet}, changes_in(path), 0.3)
    lora.scale = 0.3
    close(draw(pipe), draw(oracle), 1e-4)
    lora.remove()
    assert torch.equal(draw(pipe), plain)


def test_a_lora_in_a_folder_without_its_handle(pipe: Any, oracle: Any, tmp_path: Path) -> None:
    """The cell of the courses drops the result; the folder is named, as for the reference."""
    path = write_lora(pipe.core, tmp_path / "pytorch_lora_weights.safetensors")
    pipe.load_lora_weights(tmp_path)
    apply({"unet": oracle.unet}, changes_in(path), 1.0)
    close(draw(pipe), draw(oracle), 1e-4)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the reference loads LoRAs with PEFT")
def test_a_lora_by_the_reference_s_loader(pipe: Any, oracle: Any, tmp_path: Path) -> None:
    path = write_lora(pipe.core, tmp_path / "pytorch_lora_weights.safetensors")
    pipe.load_lora_weights(path)
    oracle.load_lora_weights(str(path))
    close(draw(pipe), draw(oracle), 1e-4)


def test_files_of_another_kind(pipe: Any, tmp_path: Path) -> None:
    """The pipeline is unchanged; what is no file is named."""
    word, lora = tmp_path / "word.safetensors", write_lora(pipe.core, tmp_path / "lora.safetensors")
    weights_loader.save_embedding("<birb>", vectors(1)[0], word)
    plain, size = draw(pipe), len(pipe.tokenizer)
    with pytest.raises(MismatchError):
        pipe.load_textual_inversion(lora)
    with pytest.raises(MismatchError):
        pipe.load_lora_weights(word)
    for load in (pipe.load_textual_inversion, pipe.load_lora_weights):
        with pytest.raises(InputError, match=r"~nobody-here/x\.safetensors"):
            load("~nobody-here/x.safetensors")
    assert len(pipe.tokenizer) == size
    assert torch.equal(draw(pipe), plain)
