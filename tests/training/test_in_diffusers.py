"""What each command saves loads in stock diffusers and gives the same image, to 1e-4: SD 1, SD 2 and SDXL in small."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.small import small_pipeline
from support.small_xl import oracle_xl
from support.training_images import training_images
from torch import Tensor

import weights_loader
from minisd import images
from minisd.cli import distill, main
from minisd.editing.imagic import Settings, draw_edit, train_edit
from minisd.pipeline import Defaults, StableDiffusion

diffusers = pytest.importorskip("diffusers")

CLOSE = 1e-4
TRAINED = 1e-3  # an image that differs less says nothing about what was trained
PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
KINDS = ("sd1", "sdxl")


def prepared(folder: Path, kind: str) -> Path:
    """A small model, two images of a subject and one of its class in a folder."""
    if kind == "sdxl":
        oracle_xl(folder).save_pretrained(folder / "model")
    else:
        sd = small_pipeline(sd2=kind == "sd2")
        sd.defaults = Defaults(num_inference_steps=8, guidance_scale=3.0)
        weights_loader.save(sd, folder / "model")
    for name, count, seed in (("subject", 2, 0), ("class", 1, 1)):
        (folder / name).mkdir()
        for k, image in enumerate(images.to_pil(training_images("a cat", count, seed).pixels)):
            images.save(image, folder / name / f"{k}.png")
    return folder


def train(folder: Path, stage: str, *options: str, prompt: str = "a red cat") -> Path:
    """Run the command on the prepared folder; the folder of its results."""
    where = ["--start-from", str(folder / "model"), "--pictures", str(folder / "subject"), "--prompt", prompt]
    assert main(["train", stage, str(folder / "run"), *where, "--steps", "2", *options]) == 0
    return folder / "run"


def stock(folder: Path, kind: str) -> Any:
    """The pipeline of diffusers from a folder."""
    options = {} if kind == "sdxl" else {"safety_checker": None}
    pipeline = getattr(diffusers, PIPELINES[kind]).from_pretrained(folder, torch_dtype=torch.float32, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, prompt: str | None = "a red cat", **options: Any) -> Tensor:
    """An image (1, 3, 32, 32) in [0, 1] of a pipeline, ours or that of diffusers."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    run = {"num_inference_steps": 2, "guidance_scale": 3.0, **options}
    image = pipeline(prompt, latents=latents, height=32, width=32, output_type="pt", **run).images
    return (image + 1) / 2 if isinstance(pipeline, StableDiffusion) else image


def assert_same(got: Tensor, expected: Tensor, before: Tensor) -> None:
    """The images are equal, and training has changed them."""
    assert torch.allclose(got, expected, atol=CLOSE)
    assert (expected - before).abs().max() > TRAINED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["full", pytest.param("dreambooth", marks=pytest.mark.slow)])
def test_whole_models(stage: str, kind: str, tmp_path: Path) -> None:
    folder = prepared(tmp_path, kind)
    options = [
        "--text-encoder",
        "--batch",
        "1",
        "--learning-rate",
        "0.003",
        "--warmup-steps",
        "0",
        "--gradient-checkpointing",
    ]
    if stage == "dreambooth":
        options += ["--class-pictures", str(folder / "class"), "--class-prompt", "a cat"]
    path = train(folder, stage, *options) / stage
    theirs, before = stock(path, kind), stock(folder / "model", kind)
    sd = weights_loader.load(path)
    assert_same(drawn(sd), drawn(theirs), drawn(before))
    networks = [name for name in ("text_encoder", "text_encoder_2") if hasattr(theirs, name)]
    assert len(networks) == 1 + (kind == "sdxl")
    for name in networks:  # each was trained
        pairs = zip(getattr(theirs, name).parameters(), getattr(before, name).parameters(), strict=True)
        assert max(float((a - b).detach().abs().max()) for a, b in pairs) > TRAINED
    weights_loader.save(sd, folder / "one.safetensors", layout="ldm")
    again = weights_loader.load(folder / "one.safetensors", tokenizer=folder / "model" / "tokenizer")
    assert torch.allclose(drawn(again), drawn(sd), atol=1e-5)
    one = getattr(diffusers, PIPELINES[kind]).from_single_file(
        str(folder / "one.safetensors"), config=str(folder / "model"), torch_dtype=torch.float32, local_files_only=True
    )
    one.set_progress_bar_config(disable=True)
    assert torch.allclose(drawn(one), drawn(sd), atol=CLOSE)


def merged(pipeline: Any, path: Path) -> Any:
    """The pipeline of diffusers with the changes of a LoRA added to its layers by their names."""
    tensors = load_file(path)
    for name in (name for name in tensors if name.endswith("lora_A.weight")):
        network, place = name.removesuffix(".lora_A.weight").split(".", 1)
        module = getattr(pipeline, network)
        if network != "unet" and not hasattr(module, "text_model"):  # transformers 5 left this name out
            place = place.removeprefix("text_model.")
        with torch.no_grad():
            weight = module.get_submodule(place).weight
            up, down = tensors[name.replace("lora_A", "lora_B")], tensors[name]
            weight += (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return pipeline


LORA = ("--batch", "2", "--learning-rate", "0.05", "--rank", "2")


def networks_of(path: Path) -> set[str]:
    return {name.split(".", 1)[0] for name in load_file(path)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [False, True])
def test_loras(text: bool, kind: str, tmp_path: Path) -> None:
    """Added to the layers; and loaded by diffusers itself where PEFT is installed."""
    folder = prepared(tmp_path, kind)
    path = train(folder, "lora", *LORA, *(["--text-encoder"] if text else [])) / "lora.safetensors"
    encoders = {"text_encoder", "text_encoder_2"} if kind == "sdxl" else {"text_encoder"}
    assert networks_of(path) == {"unet"} | (encoders if text else set())
    sd = weights_loader.load(folder / "model")
    before = drawn(sd)
    weights_loader.load_lora(sd, path)
    assert_same(drawn(sd), drawn(merged(stock(folder / "model", kind), path)), before)


@pytest.mark.parametrize("kind", KINDS)
def test_loras_by_peft(kind: str, tmp_path: Path) -> None:
    """`load_lora_weights` of diffusers finds every layer of the UNet and of the text encoders."""
    pytest.importorskip("peft")
    folder = prepared(tmp_path, kind)
    path = train(folder, "lora", *LORA, "--text-encoder") / "lora.safetensors"
    theirs, sd = stock(folder / "model", kind), weights_loader.load(folder / "model")
    before = drawn(theirs)
    theirs.load_lora_weights(str(path))
    assert {*theirs.get_list_adapters()} == networks_of(path)
    layers = sum(hasattr(module, "lora_A") for name in networks_of(path) for module in getattr(theirs, name).modules())
    assert weights_loader.load_lora(sd, path).layers == layers
    assert_same(drawn(sd), drawn(theirs), before)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_embeddings(kind: str, tmp_path: Path) -> None:
    folder, prompt = prepared(tmp_path, kind), "a <x> above a cat"
    options = ["--token", "<x>", "--like", "cat", "--batch", "2", "--gradient-checkpointing"]
    path = train(folder, "embedding", *options, prompt=prompt) / "embedding.safetensors"
    theirs, sd = stock(folder / "model", kind), weights_loader.load(folder / "model")
    before = drawn(theirs, "a cat above a cat")
    theirs.load_textual_inversion(str(path))
    assert weights_loader.load_embedding(sd, path) == ["<x>"]
    got, expected = drawn(sd, prompt), drawn(theirs, prompt)
    assert torch.allclose(got, expected, atol=CLOSE)
    assert (expected - before).abs().max() > CLOSE  # a few small steps from "cat"


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_students_with_fewer_steps(kind: str, tmp_path: Path) -> None:
    folder = prepared(tmp_path, kind)
    run = train(folder, "distill", "--from", "8", "--to", "2", "--batch", "2", "--gradient-checkpointing")
    for steps in (4, 2):
        path = run / f"steps-{steps}"
        options = {"num_inference_steps": steps, "guidance_scale": 1.0}
        got, expected = (drawn(each, **options) for each in (weights_loader.load(path), stock(path, kind)))
        assert torch.allclose(got, expected, atol=CLOSE)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_students_that_read_the_scale(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`time_cond_proj_dim` in diffusers; also their own students with fewer steps."""
    fast = replace(distill.GUIDED_RECIPE, learning_rate=0.05, warmup_steps=0)
    monkeypatch.setattr(distill, "GUIDED_RECIPE", fast)  # the weights of the scale begin as zeros
    folder = prepared(tmp_path, kind)
    less = ["--batch", "2", "--gradient-checkpointing", "--ema-decay", "0"]
    train(folder, "distill", "--method", "guided", *less)
    (folder / "model").rename(folder / "teacher")
    (folder / "run" / "guided").rename(folder / "model")
    train(folder, "distill", "--from", "4", "--to", "2", *less)
    for path in (folder / "model", folder / "run" / "steps-2"):
        theirs, sd = stock(path, kind), weights_loader.load(path)
        assert theirs.unet.config.time_cond_proj_dim == distill.SMALL_WIDTH
        for scale in (1.5, 6.0):
            assert_same(drawn(sd, guidance_scale=scale), drawn(theirs, guidance_scale=scale), drawn(theirs))


@pytest.mark.parametrize(("all_layers", "by_peft"), [(False, False), (True, False), (True, True)])
def test_imagic(tmp_path: Path, all_layers: bool, by_peft: bool) -> None:
    """The change of the UNet as a LoRA, and the mixed states as `prompt_embeds`, draw the edit in diffusers."""
    if by_peft:
        pytest.importorskip("peft")
    folder, path = prepared(tmp_path, "sd1"), tmp_path / "lora.safetensors"
    sd, theirs = weights_loader.load(folder / "model"), stock(folder / "model", "sd1")
    rate = 1e-2 if all_layers else 1e-1
    few = Settings(3, 1e-2, 3, rate, rank=2, all_layers=all_layers, gradient_checkpointing=True)
    edit = train_edit(sd, training_images("a cat", 1).pixels, "a red cat", tmp_path / "edit", few)
    weights_loader.save_lora(edit.changes, sd.unet, path)
    before = drawn(sd)
    theirs.load_lora_weights(str(path)) if by_peft else merged(theirs, path)
    for eta in (0.0, 0.7):
        expected = drawn(theirs, None, prompt_embeds=edit.states(eta))
        got = draw_edit(sd, edit, [eta], seed=0, num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
        assert_same((got + 1) / 2, expected, before)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["train", "embedding", "{}/run", "--token", "<x>", "--like", "cat", "--prompt", "a <x>"],
            "an embedding of SD",
        ),
        (["train", "distill", "{}/run", "--prompt", "a cat"], "SDXL cannot be distilled"),
        (["train", "distill", "{}/run", "--prompt", "a cat", "--method", "guided"], "SDXL cannot be distilled"),
        (["edit", "a cat", "--image", "{}/subject/0.png"], "SDXL cannot be used for Imagic"),
    ],
)
def test_what_is_not_for_sdxl(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, before anything is written."""
    folder = prepared(tmp_path, "sdxl")
    capsys.readouterr()
    where = (
        ["--start-from", "{}/model", "--pictures", "{}/subject"] if command[0] == "train" else ["--model", "{}/model"]
    )
    assert main([part.format(folder) for part in (*command, *where)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "use a text-to-image model of SD 1.x or 2.x." in error
    assert error.count("\n") == 1
    assert not [*(folder / "run").glob("*")]
