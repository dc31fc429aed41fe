"""Models saved by the reference, helpers to damage them, and comparisons of models and images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from support.small import oracle_pipeline, write_tokenizer
from torch import Tensor

import weights_loader
from minisd.errors import MinisdError
from minisd.pipeline import StableDiffusion
from weights_loader import detect
from weights_loader.names import ldm

PICTURE = 1 / 255
LATENTS = 1e-4  # of their scale
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"
CALL: dict[str, Any] = {"num_inference_steps": 3}
PROMPTS = {"prompt": ["a cat", "a red dog!"], "negative_prompt": ["blurry", ""]}


class Saved(NamedTuple):
    """A pipeline of the reference and the folder that it wrote."""

    oracle: Any
    folder: Path


def save_oracle(folder: Path, sd2: bool, **others: Any) -> Saved:
    oracle = oracle_pipeline(folder / "vocabulary", sd2, **others)
    oracle.save_pretrained(folder / "model")
    return Saved(oracle, folder / "model")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture_of_oracle(oracle: Any, latents: Tensor, output_type: str = "np", **arguments: Any) -> Any:
    factor = 2
    size = {"height": latents.shape[2] * factor, "width": latents.shape[3] * factor}
    images = oracle(latents=latents.clone(), output_type=output_type, **{**CALL, **size, **arguments}).images
    return images.numpy() if isinstance(images, Tensor) else images


def picture_of_ours(sd: StableDiffusion, latents: Tensor, output_type: str = "np", **arguments: Any) -> Any:
    images = sd(latents=latents, output_type=output_type, **{**CALL, **arguments}).images
    return images.numpy() if isinstance(images, Tensor) else images


def assert_same_picture(sd: StableDiffusion, oracle: Any, size: tuple[int, int] = (8, 12), **arguments: Any) -> None:
    """Latents to 1e-4 of their scale, pixels to 1/255, from the same noise."""
    arguments = arguments or PROMPTS
    rows = len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1
    x = noise(rows * arguments.get("num_images_per_prompt", 1), 4, *size)
    got, expected = (
        run(each, x, "latent", **arguments) for run, each in ((picture_of_ours, sd), (picture_of_oracle, oracle))
    )
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= LATENTS * np.abs(expected).max()
    got, expected = (run(each, x, **arguments) for run, each in ((picture_of_ours, sd), (picture_of_oracle, oracle)))
    assert expected.std() > 0.05  # a grey image would prove nothing
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


def shard(saved: Saved, folder: Path) -> Path:
    """A copy whose UNet is in several files, by the reference."""
    copy(saved.folder, folder)
    (folder / UNET_FILE).unlink()
    saved.oracle.unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


def single(saved: Saved, path: Path) -> Path:
    """The reference's weights as one file in the original layout, with our metadata."""
    weights_loader.save(weights_loader.load(saved.folder), path, layout="ldm")
    write_tokenizer(path.parent / "tokenizer", sd2=saved.oracle.scheduler.config.prediction_type == "v_prediction")
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
        flat = {n.removeprefix("model.").replace(".", ""): t for n, t in tensors.items() if n.startswith(ldm.UNET)}
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


def refusal(source: Path, kind: type[MinisdError], message: str, **arguments: Any) -> str:
    with pytest.raises(kind, match=message) as caught:
        weights_loader.load(source, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text
