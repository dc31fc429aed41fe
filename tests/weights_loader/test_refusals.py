"""Models that do not fit: one sentence each, before anything is loaded. reference/reliability.md, F14-F28, D1."""

import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
from support.saved_models import (
    UNET_FILE,
    VAE_FILE,
    Saved,
    as_published,
    copy,
    edit,
    edit_json,
    refusal,
    shard,
    single,
)
from support.small import small_pipeline, small_tokenizer
from torch import Tensor, nn

import weights_loader
from minisd.errors import (
    DeviceError,
    FileFormatError,
    InputError,
    MismatchError,
    NumericalError,
    OutOfMemory,
    UnsafeFileError,
)

diffusers = pytest.importorskip("diffusers")


def test_inspection_tells_layout_family_and_components(saved: Saved, tmp_path: Path) -> None:
    folder = weights_loader.inspect(saved.folder)
    assert folder.layout == "diffusers (StableDiffusionPipeline)"
    assert folder.prediction_type == saved.oracle.scheduler.config.prediction_type
    path = single(saved, tmp_path / "m.safetensors")
    file = weights_loader.inspect(path)
    assert file.layout == "ldm (original single file)"
    for name in ("unet", "vae", "text_encoder"):
        count = sum(p.numel() for p in getattr(saved.oracle, name).parameters())
        assert folder.components[name].parameters == file.components[name].parameters == count
        assert file.components[name].dtypes == {"float32": file.components[name].tensors}
        assert f"{count:,} parameters" in str(file)
    safetensors.torch.save_file(as_published(path, averages=True), tmp_path / "n.safetensors")
    assert {"EMA", "rest"} <= weights_loader.inspect(tmp_path / "n.safetensors").components.keys()


def test_inspection_lists_the_words_that_a_model_knows(tmp_path: Path) -> None:
    sd = weights_loader.load("sticker")
    count, words = len(sd.defaults.words.split()), sd.defaults.words
    assert weights_loader.inspect("sticker").words == words
    assert f"knows      {count} words: {words}" in str(weights_loader.inspect("sticker"))
    file = weights_loader.save(sd, tmp_path / "m.safetensors", layout="ldm")
    assert weights_loader.inspect(file).words == words


def test_whole_numbers_are_no_weights(sd1: Saved, tmp_path: Path) -> None:
    """F14"""
    folder = copy(sd1.folder, tmp_path / "m")
    edit(folder / UNET_FILE, lambda t: {**t, "conv_in.bias": t["conv_in.bias"].to(torch.int32)})
    refusal(folder, MismatchError, r"unet.*conv_in\.bias holds torch\.int32")


def test_nan_weights_are_found_when_used(sd1: Saved, tmp_path: Path) -> None:
    """F16, as far as it goes: loading reads no weights, so the run names the stage."""
    folder = copy(sd1.folder, tmp_path / "m")
    edit(folder / UNET_FILE, lambda t: {**t, "conv_in.bias": t["conv_in.bias"] * float("nan")})
    with pytest.raises(NumericalError, match="step 0"):
        weights_loader.load(folder)("a cat", num_inference_steps=1, seed=1)


def test_missing_shards_are_listed(sd1: Saved, tmp_path: Path) -> None:
    """F18"""
    folder = shard(sd1, tmp_path / "m")
    files = sorted((folder / "unet").glob("*.safetensors"))
    for path in files[1:]:
        path.unlink()
    text = refusal(folder, MismatchError, "lacks the shards")
    assert all(path.name in text for path in files[1:])
    assert files[0].name not in text


@pytest.mark.parametrize("content", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}, "x"])
def test_damaged_index(sd1: Saved, tmp_path: Path, content: object) -> None:
    """F19"""
    folder = shard(sd1, tmp_path / "m")
    (index,) = (folder / "unet").glob("*.index.json")
    index.write_text(json.dumps(content))
    refusal(folder, FileFormatError, "index.json")


def test_index_that_names_what_no_shard_holds(sd1: Saved, tmp_path: Path) -> None:
    """F19"""
    folder = shard(sd1, tmp_path / "m")
    (index,) = (folder / "unet").glob("*.index.json")
    content = json.loads(index.read_text())
    name, file = next(iter(content["weight_map"].items()))
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "ghost.weight": file}}))
    refusal(folder, FileFormatError, "ghost.weight")
    index.write_text(json.dumps(content))
    other = next(each for each in content["weight_map"].values() if each != file)
    edit(folder / "unet" / other, lambda t: {**t, name: torch.zeros(1)})
    refusal(folder, FileFormatError, "two shards")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "C:x.safetensors", "a\\..\\b.safetensors"])
def test_index_that_leaves_its_folder(sd1: Saved, tmp_path: Path, name: str) -> None:
    """F20"""
    folder = shard(sd1, tmp_path / "m")
    (index,) = (folder / "unet").glob("*.index.json")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    refusal(folder, UnsafeFileError, "unet")


def test_links_that_leave_the_folder(sd1: Saved, tmp_path: Path) -> None:
    """F21"""
    folder = copy(sd1.folder, tmp_path / "m")
    shutil.move(folder / "unet", tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    refusal(folder, UnsafeFileError, "unet")


def test_all_that_does_not_fit_is_listed_at_once(sd1: Saved, tmp_path: Path) -> None:
    """F22, F23: wrong shapes, missing and unexpected names, in one message."""
    folder = copy(sd1.folder, tmp_path / "m")

    def damage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["conv_in.weight"] = torch.zeros(64, 4, 5, 5)
        tensors["conv_out.bias"] = torch.zeros(3)
        tensors["mystery.weight"] = torch.zeros(1)
        tensors["another.bias"] = torch.zeros(1)
        del tensors["conv_norm_out.weight"], tensors["time_embedding.linear_1.bias"]
        return tensors

    edit(folder / UNET_FILE, damage)
    text = refusal(folder, MismatchError, "unet")
    for part in (
        "2 missing: conv_norm_out.weight, time_embedding.linear_1.bias",
        "2 unexpected: another.bias, mystery.weight",
        "2 of another shape",
        "conv_in.weight (64, 4, 5, 5) (expected (64, 4, 3, 3))",
        "conv_out.bias (3,) (expected (4,))",
    ):
        assert part in text


def test_long_lists_are_cut_but_counted(sd1: Saved, tmp_path: Path) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    edit(folder / VAE_FILE, lambda t: {**t, **{f"new.{i:02}": torch.zeros(1) for i in range(12)}})
    text = refusal(folder, MismatchError, "12 unexpected")
    assert "new.09" in text
    assert "new.10" not in text


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_configs_against_tensors(sd1: Saved, tmp_path: Path, component: str) -> None:
    """Config follows tensors: a config.json of another model is found out."""
    folder = copy(sd1.folder, tmp_path / "m")
    key = {"unet": "cross_attention_dim", "vae": "latent_channels", "text_encoder": "intermediate_size"}[component]
    edit_json(folder / component / "config.json", **{key: 48})
    refusal(folder, MismatchError, f"{component}.*of another shape")


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("unet/config.json", "layers_per_block"),
        ("vae/config.json", "scaling_factor"),
        ("text_encoder/config.json", "hidden_size"),
        ("scheduler/scheduler_config.json", "beta_start"),
    ],
)
def test_the_file_of_a_wrong_value_is_named(sd1: Saved, tmp_path: Path, file: str, key: str) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    edit_json(folder / file, **{key: "x"})
    refusal(folder, MismatchError, f"{re.escape(str(folder / file))}: the ")


@pytest.mark.parametrize(("part", "layer"), [("UNet", "unet"), ("VAE's decoder", "vae.decoder")])
@pytest.mark.parametrize("weight", [0.0, 1e-42])
def test_networks_that_were_never_trained_are_named(
    sd1: Saved, tmp_path: Path, part: str, layer: str, weight: float
) -> None:
    sd = weights_loader.load(sd1.folder)
    network = sd.unet if layer == "unet" else sd.vae.decoder
    network.conv_out.weight = nn.Parameter(torch.full_like(network.conv_out.weight, weight))
    weights_loader.save(sd, tmp_path / "m")
    with pytest.warns(UserWarning, match=f"last convolution of the {part} is zero or too small"):
        weights_loader.load(tmp_path / "m")


@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
def test_weights_that_a_dtype_cannot_hold(sd1: Saved, tmp_path: Path, layout: str) -> None:
    sd = weights_loader.load(sd1.folder)
    weight = sd.unet.conv_in.weight.detach().clone()
    weight[0, 0, 0, 0] = 1e6
    sd.unet.conv_in.weight = nn.Parameter(weight)
    with pytest.raises(
        NumericalError, match=r"1 tensors have numbers too large for torch.float16 \('.*save in torch.bf"
    ):
        weights_loader.save(sd, tmp_path / "m", layout=layout, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    weights_loader.save(sd, tmp_path / "m", layout=layout, dtype=torch.bfloat16)


def test_float8_weights_are_named(sd1: Saved, tmp_path: Path) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    edit(folder / VAE_FILE, lambda tensors: {n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()})
    with pytest.warns(UserWarning, match="tensors are stored in float8, which keeps about one digit"):
        sd = weights_loader.load(folder)
    assert sd.vae.decoder.conv_out.weight.dtype == torch.float32


def test_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    entries = {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}
    header = json.dumps(entries).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refusal(tmp_path / "m.safetensors", FileFormatError, "has 100,001 tensors, expected at most 100,000")


def test_no_memory_while_a_model_is_saved(sd1: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd = weights_loader.load(sd1.folder)
    monkeypatch.setattr("weights_loader.saving.save_safetensors", Mock(side_effect=MemoryError))
    for layout in ("diffusers", "ldm"):
        with pytest.raises(OutOfMemory, match="saving the model needed memory more"):
            weights_loader.save(sd, tmp_path / layout, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_incomplete_folders(sd1: Saved, tmp_path: Path) -> None:
    refusal(sd1.folder / "unet", MismatchError, "model_index.json")
    for path, message in (
        ("unet/config.json", "unet/config.json"),
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
        (VAE_FILE, "vae has no weights"),
        ("model_index.json", "model_index.json"),
    ):
        folder = copy(sd1.folder, tmp_path / path.replace("/", "-"))
        (folder / path).unlink()
        refusal(folder, MismatchError, message)


def test_folders_of_other_pipelines(sd1: Saved, tmp_path: Path) -> None:
    """F25"""
    folder = copy(sd1.folder, tmp_path / "m")
    edit_json(folder / "model_index.json", _class_name="StableDiffusion3Pipeline")
    refusal(folder, MismatchError, "StableDiffusion3Pipeline.*SD 1.x, 2.x and SDXL")


def test_samplers_on_other_noise_schedules(sd1: Saved, tmp_path: Path) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text('{"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}')
    refusal(folder, MismatchError, "'EDMEulerScheduler' and no betas, expected one of DDIMScheduler")
    path.write_text('{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}')
    refusal(folder, MismatchError, "use_flow_sigmas True")


FOREIGN_FILES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "LoRA": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)},
        "a LoRA.*the model that it was made for",
    ),
    "embedding": ({"<cat-toy>": (4, 8)}, "textual-inversion embedding.*the model that it was made for"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": (4, 8)}, "a ControlNet"),
    "a UNet alone": (
        {"model.diffusion_model.input_blocks.0.0.weight": (4, 8)},
        "holds a UNet in the original layout but no VAE and no text encoder",
    ),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.x": (4, 8)}, "SD 3"),
    "Flux": ({"double_blocks.0.x": (4, 8)}, "Flux"),
    "vae": ({"encoder.conv_in.weight": (4, 8), "decoder.conv_in.weight": (4, 8)}, r"a single network \(vae\)"),
    "unet": ({"time_embedding.linear_1.weight": (4, 8), "conv_in.weight": (4, 8)}, r"a single network \(unet\)"),
    "text encoder": (
        {"text_model.embeddings.token_embedding.weight": (4, 8)},
        r"a single network \(text_encoder\)",
    ),
    "a VAE alone, in the original layout": (
        {"first_stage_model.encoder.conv_in.weight": (4, 8)},
        "holds a VAE in the original layout but no UNet and no text encoder",
    ),
    "a text encoder alone, in the original layout": (
        {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (4, 8)},
        "holds a text encoder in the original layout but no UNet and no VAE",
    ),
    "nothing known": ({"bert.weight": (4, 8)}, "holds 'bert.weight', expected a Stable Diffusion model"),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_else_people_point_at(tmp_path: Path, name: str, suffix: str) -> None:
    """F24, F25: named, with what to do; `inspect` describes it instead."""
    shapes, message = FOREIGN_FILES[name]
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    path = tmp_path / f"file{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        safetensors.torch.save_file(tensors, path)
    refusal(path, MismatchError, message)
    assert weights_loader.inspect(path).components


def test_tensors_of_no_component_are_refused(sd1: Saved, tmp_path: Path) -> None:
    """F23 in a single file."""
    path = single(sd1, tmp_path / "m.safetensors")
    tensors = safetensors.torch.load_file(path)
    for name in ("model.diffusion_model.mystery", "first_stage_model.mystery"):
        safetensors.torch.save_file({**tensors, name: torch.zeros(1)}, path)
        refusal(path, MismatchError, "mystery")
    del tensors["model.diffusion_model.out.2.bias"]
    safetensors.torch.save_file(tensors, path)
    refusal(path, MismatchError, r"1 missing: out\.2\.bias")


def test_devices_and_dtypes(sd1: Saved) -> None:
    """D1: the message lists what is available; nothing is read before."""
    for device in ("gpu0", "cuda:99", "meta", 3.5, "cpu:x"):
        refusal(sd1.folder, DeviceError, "cpu", device=device)
    if not torch.cuda.is_available():
        refusal(sd1.folder, DeviceError, "cuda.*not on this machine.*expected cpu", device="cuda")
    refusal(sd1.folder, InputError, "dtype", dtype=torch.float64)
    refusal(sd1.folder / "nowhere", InputError, "nowhere")
    assert weights_loader.load(sd1.folder, device=torch.device("cpu"), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_inpainting_models_load_and_refuse_text_to_image(tmp_path: Path) -> None:
    """F26"""
    weights_loader.save(small_pipeline(in_channels=9), tmp_path / "m.safetensors", layout="ldm")
    sd = weights_loader.load(tmp_path / "m.safetensors", tokenizer=small_tokenizer())
    with pytest.raises(InputError, match=r"inpainting model.*give image and mask_image"):
        sd("a cat")


def test_channels_of_another_model(sd1: Saved, tmp_path: Path) -> None:
    """F25, F26: the config has 9 channels, the weights are those of text to image."""
    folder = copy(sd1.folder, tmp_path / "m")
    edit_json(folder / "unet" / "config.json", in_channels=9)
    refusal(folder, MismatchError, "4 input channels.*9.*inpainting")
