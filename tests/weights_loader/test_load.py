"""Whole models: saved by the reference and loaded here, and back; the same picture, or one error."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from small import oracle_pipeline, small_pipeline, small_tokenizer, write_tokenizer
from torch import Tensor

import weights_loader
from minisd.errors import (
    DeviceError,
    FileFormatError,
    InputError,
    MinisdError,
    MismatchError,
    NumericalError,
    OutputError,
    UnsafeFileError,
)
from minisd.pipeline import Defaults, StableDiffusion
from minisd.schedulers import DDIM, PNDM
from weights_loader import detect
from weights_loader.names import ldm
from weights_loader.single_file import CONFIGS_KEY

diffusers = pytest.importorskip("diffusers")

PICTURE = 1 / 255
LATENTS = 1e-4  # of their scale
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"


class Saved(NamedTuple):
    """A pipeline of the reference and the folder that it wrote."""

    oracle: Any
    folder: Path


def save_oracle(folder: Path, sd2: bool, **others: Any) -> Saved:
    oracle = oracle_pipeline(folder / "vocabulary", sd2, **others)
    oracle.save_pretrained(folder / "model")
    return Saved(oracle, folder / "model")


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_oracle(tmp_path_factory.mktemp("sd1"), sd2=False)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_oracle(tmp_path_factory.mktemp("sd2"), sd2=True)


@pytest.fixture(params=["sd1", "sd2"])
def saved(request: pytest.FixtureRequest) -> Saved:
    return request.getfixturevalue(request.param)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CALL: dict[str, Any] = {"num_inference_steps": 3}
PROMPTS = {"prompt": ["a cat", "a red dog!"], "negative_prompt": ["blurry", ""]}


def picture_of_oracle(oracle: Any, latents: Tensor, output_type: str = "np", **arguments: Any) -> Any:
    factor = 2
    size = {"height": latents.shape[2] * factor, "width": latents.shape[3] * factor}
    images = oracle(latents=latents.clone(), output_type=output_type, **{**CALL, **size, **arguments}).images
    return images.numpy() if isinstance(images, Tensor) else images


def picture_of_ours(sd: StableDiffusion, latents: Tensor, output_type: str = "np", **arguments: Any) -> Any:
    images = sd(latents=latents, output_type=output_type, **{**CALL, **arguments}).images
    return images.numpy() if isinstance(images, Tensor) else images


def assert_same_picture(
    sd: StableDiffusion, oracle: Any, size: tuple[int, int] = (8, 12), **arguments: Any
) -> None:
    """Latents to 1e-4 of their scale, pixels to 1/255, from the same noise."""
    arguments = arguments or PROMPTS
    rows = len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1
    x = noise(rows * arguments.get("num_images_per_prompt", 1), 4, *size)
    got, expected = (
        run(each, x, "latent", **arguments)
        for run, each in ((picture_of_ours, sd), (picture_of_oracle, oracle))
    )
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= LATENTS * np.abs(expected).max()
    got, expected = (
        run(each, x, **arguments) for run, each in ((picture_of_ours, sd), (picture_of_oracle, oracle))
    )
    assert expected.std() > 0.05  # a grey picture would prove nothing
    assert np.abs(got - expected).max() < PICTURE


def same_weights(a: StableDiffusion, b: StableDiffusion) -> bool:
    for name in ("text_encoder", "vae", "unet"):
        left, right = getattr(a, name).state_dict(), getattr(b, name).state_dict()
        if getattr(a, name).config != getattr(b, name).config or left.keys() != right.keys():
            return False
        if not all(torch.equal(left[key], right[key]) for key in left):
            return False
    return a.scheduler == b.scheduler and a.defaults == b.defaults and a.tokenizer.vocab == b.tokenizer.vocab


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a safetensors file."""
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(change(tensors), path)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


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


@pytest.mark.parametrize("size", [(16, 16), (4, 20), (6, 2)])
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
        theirs = saved.oracle.tokenizer(
            text, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
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
            half["text_model.embeddings.position_ids"] = torch.arange(77)[None]
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


def shard(saved: Saved, folder: Path) -> Path:
    """A copy whose UNet is in several files, by the reference."""
    copy(saved.folder, folder)
    (folder / UNET_FILE).unlink()
    saved.oracle.unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


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
            names = {
                name if name.startswith("text_model.") else f"text_model.{name}": name for name in tensors
            }
            full = {name: tensors[old] for name, old in names.items()}
            full["text_model.embeddings.position_ids"] = torch.arange(77)[None]
            return {
                name.removeprefix("text_model.") if strip else name: tensor for name, tensor in full.items()
            }

        edit(folder / TEXT_FILE, change)
        assert same_weights(weights_loader.load(folder), right)


def test_tensors_are_views_of_the_file(sd1: Saved) -> None:
    """Loading in the file's own dtype copies nothing; a converted one is in memory of its own."""
    sd = weights_loader.load(sd1.folder)
    file = sd.unet.conv_in.weight.untyped_storage().data_ptr()
    assert sum(p.untyped_storage().data_ptr() == file for p in sd.unet.parameters()) >= 0
    before = (sd1.folder / UNET_FILE).read_bytes()
    with torch.no_grad():
        sd.unet.conv_in.weight.zero_()
    assert (sd1.folder / UNET_FILE).read_bytes() == before
    assert weights_loader.load(sd1.folder).unet.conv_in.weight.abs().max() > 0


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
    assert weights_loader.inspect(tmp_path / "m").components["unet"].dtypes == {
        "float16": len(sd.unet.state_dict())
    }
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


# Single files.


def single(saved: Saved, path: Path) -> Path:
    """The reference's weights as one file in the original layout, with our metadata."""
    weights_loader.save(weights_loader.load(saved.folder), path, layout="ldm")
    write_tokenizer(
        path.parent / "tokenizer", sd2=saved.oracle.scheduler.config.prediction_type == "v_prediction"
    )
    return path


def as_published(path: Path, averages: bool = False) -> dict[str, Tensor]:
    """Its tensors with what else official files hold, and without our metadata."""
    tensors = safetensors.torch.load_file(path)
    for name in sorted(detect.SCHEDULE_BUFFERS):
        tensors[name] = torch.linspace(0, 1, 1000)
    tensors["model_ema.decay"], tensors["model_ema.num_updates"] = (
        torch.tensor(0.9999),
        torch.tensor(7, dtype=torch.int32),
    )
    if averages:
        flat = {
            n.removeprefix("model.").replace(".", ""): t for n, t in tensors.items() if n.startswith(ldm.UNET)
        }
        tensors |= {f"model_ema.{name}": tensor * 0 for name, tensor in flat.items()}
    if f"{ldm.OPENCLIP}token_embedding.weight" in tensors:
        width = tensors[f"{ldm.OPENCLIP}token_embedding.weight"].shape[1]
        last = {n: t for n, t in tensors.items() if ".resblocks.1." in n}
        tensors |= {n.replace(".resblocks.1.", ".resblocks.2."): t + 1 for n, t in last.items()}
        tensors[f"{ldm.OPENCLIP}text_projection"] = torch.eye(width)
        tensors[f"{ldm.OPENCLIP}logit_scale"] = torch.tensor(4.6)
    else:
        tensors[f"{ldm.CLIP}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors


def test_single_file(saved: Saved, tmp_path: Path) -> None:
    """From its metadata, with the vocabulary beside it."""
    sd = weights_loader.load(single(saved, tmp_path / "m.safetensors"))
    assert same_weights(sd, weights_loader.load(saved.folder))
    assert_same_picture(sd, saved.oracle)


def test_single_file_as_published(saved: Saved, tmp_path: Path) -> None:
    """A pickled checkpoint with training state, schedule buffers and leftovers: everything from shapes."""
    tensors = as_published(single(saved, tmp_path / "m.safetensors"))
    torch.save({"state_dict": tensors, "global_step": 470000, "epoch": 3}, tmp_path / "m.ckpt")
    given = saved.oracle.scheduler.config.prediction_type
    sd = weights_loader.load(tmp_path / "m.ckpt", prediction_type=given)
    assert sd.text_encoder.config == weights_loader.load(saved.folder).text_encoder.config
    assert_same_picture(sd, saved.oracle)


def test_averages_are_left_out_with_a_word(sd1: Saved, tmp_path: Path) -> None:
    """F27: the plain weights are loaded; how many averages were not is said."""
    path = single(sd1, tmp_path / "m.safetensors")
    count = len(weights_loader.load(sd1.folder).unet.state_dict())
    safetensors.torch.save_file(as_published(path, averages=True), tmp_path / "ema.safetensors")
    with pytest.warns(UserWarning, match=rf"{count} averaged \(EMA\)"):
        sd = weights_loader.load(tmp_path / "ema.safetensors")
    assert_same_picture(sd, sd1.oracle)


@pytest.mark.parametrize("wrap", ["bare", "module.", "_orig_mod."])
def test_wrapped_and_bare_checkpoints(sd1: Saved, tmp_path: Path, wrap: str) -> None:
    """F28: without `state_dict`, and with the prefixes of other people's wrappers."""
    tensors = as_published(single(sd1, tmp_path / "m.safetensors"))
    prefix = "" if wrap == "bare" else wrap
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "m.ckpt")
    if prefix:
        with pytest.warns(UserWarning, match=f"'{prefix}' was cut"):
            sd = weights_loader.load(tmp_path / "m.ckpt")
    else:
        sd = weights_loader.load(tmp_path / "m.ckpt")
    assert_same_picture(sd, sd1.oracle)


def test_old_single_file_without_text_model(sd1: Saved, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(single(sd1, tmp_path / "m.safetensors"))
    old = {
        name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()
    }
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    assert_same_picture(weights_loader.load(tmp_path / "old.safetensors"), sd1.oracle)


def test_single_file_of_sd2_must_say_what_it_predicts(tmp_path: Path) -> None:
    """Tensors do not tell; a known name, or the argument, does."""
    saved = save_oracle(tmp_path, sd2=True, context=1024)
    tensors = as_published(single(saved, tmp_path / "mine.safetensors"))
    for name in ("mine", "v2-1_768-ema-pruned", "512-base-ema"):
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"mine\.safetensors.*prediction_type='v_prediction'.*'epsilon'"):
        weights_loader.load(tmp_path / "mine.safetensors")
    for name, given, expected, sampler in (
        ("mine", "v_prediction", "v_prediction", DDIM),
        ("mine", "epsilon", "epsilon", PNDM),
        ("v2-1_768-ema-pruned", None, "v_prediction", DDIM),
        ("512-base-ema", None, "epsilon", PNDM),
        ("512-base-ema", "v_prediction", "v_prediction", DDIM),
    ):
        sd = weights_loader.load(tmp_path / f"{name}.safetensors", prediction_type=given)
        assert (sd.scheduler.schedule.prediction_type, type(sd.scheduler)) == (expected, sampler)
        assert sd.tokenizer.pad_id == 0
    assert_same_picture(weights_loader.load(tmp_path / "v2-1_768-ema-pruned.safetensors"), saved.oracle)


def test_single_file_without_a_vocabulary(sd1: Saved, tmp_path: Path) -> None:
    """The hub is offline in tests: the error says what to do; each way of giving one works."""
    path = single(sd1, tmp_path / "m.safetensors")
    vocabulary = shutil.move(tmp_path / "tokenizer", tmp_path / "elsewhere")
    with pytest.raises(MismatchError, match=r"vocab\.json and merges\.txt.*tokenizer="):
        weights_loader.load(path, offline=True)
    right = weights_loader.load(sd1.folder)
    for given in (vocabulary, str(vocabulary), small_tokenizer()):
        assert same_weights(weights_loader.load(path, tokenizer=given), right)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(Path(vocabulary) / name, tmp_path)
    assert same_weights(weights_loader.load(path), right)


def test_damaged_metadata_is_named(sd1: Saved, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(single(sd1, tmp_path / "m.safetensors"))
    for text in ("{", "[]", '{"unet": 3}'):
        safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {CONFIGS_KEY: text})
        with pytest.raises((FileFormatError, MismatchError), match=r"m\.safetensors|metadata"):
            weights_loader.load(tmp_path / "m.safetensors")


# What is refused. reference/reliability.md, F14-F28; nothing half-loaded comes out.


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


def refusal(source: Path, kind: type[MinisdError], message: str, **arguments: Any) -> str:
    with pytest.raises(kind, match=message) as caught:
        weights_loader.load(source, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


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


@pytest.mark.parametrize(
    "content", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}, "x"]
)
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


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "C:x.safetensors", "a\\..\\b.safetensors"]
)
def test_index_that_leaves_its_folder(sd1: Saved, tmp_path: Path, name: str) -> None:
    """F20"""
    folder = shard(sd1, tmp_path / "m")
    (index,) = (folder / "unet").glob("*.index.json")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    refusal(folder, UnsafeFileError, "")


def test_links_that_leave_the_folder(sd1: Saved, tmp_path: Path) -> None:
    """F21"""
    folder = copy(sd1.folder, tmp_path / "m")
    shutil.move(folder / "unet", tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    refusal(folder, UnsafeFileError, "")


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
    key = {"unet": "cross_attention_dim", "vae": "latent_channels", "text_encoder": "intermediate_size"}[
        component
    ]
    edit_json(folder / component / "config.json", **{key: 48})
    refusal(folder, MismatchError, f"{component}.*of another shape")


def test_incomplete_folders(sd1: Saved, tmp_path: Path) -> None:
    refusal(sd1.folder / "unet", MismatchError, "model_index.json")
    for path, message in (
        ("unet/config.json", "unet/config.json"),
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
        (VAE_FILE, "vae holds no weights"),
        ("model_index.json", "model_index.json"),
    ):
        folder = copy(sd1.folder, tmp_path / path.replace("/", "-"))
        (folder / path).unlink()
        refusal(folder, MismatchError, message)


def test_folders_of_other_pipelines(sd1: Saved, tmp_path: Path) -> None:
    """F25"""
    folder = copy(sd1.folder, tmp_path / "m")
    edit_json(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
    refusal(folder, MismatchError, "StableDiffusionXLPipeline.*SD 1.x and 2.x")


def test_unknown_scheduler(sd1: Saved, tmp_path: Path) -> None:
    folder = copy(sd1.folder, tmp_path / "m")
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="MagicScheduler")
    refusal(folder, InputError, "'MagicScheduler', expected one of DDIMScheduler")


STRANGERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "LoRA": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)},
        "a LoRA.*the model that it adapts",
    ),
    "embedding": ({"<cat-toy>": (4, 8)}, "textual-inversion embedding.*the model that it belongs to"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": (4, 8)}, "a ControlNet"),
    "SDXL": (
        {"model.diffusion_model.input_blocks.0.0.weight": (4, 8), "conditioner.embedders.0.x": (1,)},
        "SDXL",
    ),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.x": (4, 8)}, "SD 3"),
    "Flux": ({"double_blocks.0.x": (4, 8)}, "Flux"),
    "vae": ({"encoder.conv_in.weight": (4, 8), "decoder.conv_in.weight": (4, 8)}, r"one component \(vae\)"),
    "unet": ({"time_embedding.linear_1.weight": (4, 8), "conv_in.weight": (4, 8)}, r"one component \(unet\)"),
    "text encoder": (
        {"text_model.embeddings.token_embedding.weight": (4, 8)},
        r"one component \(text_encoder\)",
    ),
    "nothing known": ({"bert.weight": (4, 8)}, "no Stable Diffusion model.*bert.weight"),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_else_people_point_at(tmp_path: Path, name: str, suffix: str) -> None:
    """F24, F25: named, with what to do; `inspect` describes it instead."""
    shapes, message = STRANGERS[name]
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
    for name in ("mystery.weight", "model.diffusion_model.mystery", "first_stage_model.mystery"):
        safetensors.torch.save_file({**tensors, name: torch.zeros(1)}, path)
        refusal(path, MismatchError, "mystery")
    del tensors["model.diffusion_model.out.2.bias"]
    safetensors.torch.save_file(tensors, path)
    refusal(path, MismatchError, r"1 missing: out\.2\.bias")


def test_devices_and_dtypes(sd1: Saved) -> None:
    """D1: what is not here is said with what is; nothing is read before."""
    for device in ("gpu0", "cuda:99", "meta", 3.5, "cpu:x"):
        refusal(sd1.folder, DeviceError, "cpu", device=device)
    if not torch.cuda.is_available():
        refusal(sd1.folder, DeviceError, "cuda.*not on this machine.*cpu", device="cuda")
    refusal(sd1.folder, InputError, "dtype", dtype=torch.float64)
    refusal(sd1.folder / "nowhere", InputError, "nowhere")
    assert (
        weights_loader.load(sd1.folder, device=torch.device("cpu"), dtype=torch.bfloat16).dtype
        == torch.bfloat16
    )


def test_inpainting_models_load_and_refuse_text_to_image(tmp_path: Path) -> None:
    """F26"""
    weights_loader.save(small_pipeline(in_channels=9), tmp_path / "m.safetensors", layout="ldm")
    sd = weights_loader.load(tmp_path / "m.safetensors", tokenizer=small_tokenizer())
    with pytest.raises(InputError, match=r"9 channels.*inpainting"):
        sd("a cat")


def test_channels_of_another_model(sd1: Saved, tmp_path: Path) -> None:
    """F25, F26: the config says 9 channels, the weights are those of text to image."""
    folder = copy(sd1.folder, tmp_path / "m")
    edit_json(folder / "unet" / "config.json", in_channels=9)
    refusal(folder, MismatchError, "4 channels.*9.*inpainting")
