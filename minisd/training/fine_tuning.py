"""Teach a trained model something from a few pictures: a word for it or, as a LoRA, how pictures are to look.

Nothing that the model knows is changed: of a word, a vector for each of its tokens is trained (Gal et al. 2022); of a
LoRA, a change of low rank of the attention layers of the UNet (Hu et al. 2021).
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.func import functional_call

from minisd import images
from minisd.adapters import LowRankChanges
from minisd.errors import InputError
from minisd.interpret import text_vectors
from minisd.models.layers import Attention
from minisd.pipeline import StableDiffusion
from minisd.training.trainer import Recipe, train

NO_CAPTION = 0.1  # share of a LoRA's captions that are left empty, for guidance
BATCH = 8


class Pictures(NamedTuple):
    """What is to be learned from: pixels (N, 3, H, W) in [-1, 1], and what each picture is called."""

    pixels: Tensor
    captions: list[str]


def read_pictures(folder: Path, size: int, prompt: str = "") -> Pictures:
    """All pictures of a folder, cropped and resized to `size`; a caption is X.txt beside X.png, else the prompt.

    Raises InputError for a folder without pictures, a picture that cannot be read, and one without a caption.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in images.SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no pictures, expected some of {', '.join(images.SUFFIXES)}.")
    captions = [path.with_suffix(".txt") for path in found]
    told = [path.read_text(encoding="utf-8").strip() if path.is_file() else prompt for path in captions]
    if not all(told):
        raise InputError(f"{found[told.index('')]} has no caption; write one beside it, as .txt, or give a prompt.")
    fitted = [ImageOps.fit(images.open_image(path), (size, size), Image.Resampling.LANCZOS) for path in found]
    return Pictures(torch.cat([images.from_pil(each) for each in fitted]), told)


class Word(nn.Module):
    """The vectors of a new word, (n, width)."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())


def train_embedding(
    sd: StableDiffusion,
    pictures: Pictures,
    token: str,
    like: str,
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    steps: int | None = None,
    learning_rate: float = 5e-3,
) -> Tensor:
    """Learn what `token` means in the captions, from the meaning of the word `like`; its vectors (n, width).

    Continues the run at `path`, for `minutes` or `steps` in all.
    Raises InputError: the token exists, a caption lacks it, `like` is no word, or a model that is told more than text.
    """
    _check(sd)
    if not all(token in text for text in pictures.captions):
        without = next(text for text in pictures.captions if token not in text)
        raise InputError(f"the caption {without!r} does not have {token!r} in it, which is to be learned.")
    encoder, tokenizer = sd.text_encoder, copy.deepcopy(sd.tokenizer)
    word = Word(text_vectors.vector(sd, like).float())
    first = tokenizer.add_token(token, len(word.vectors))
    for network in (sd.unet, encoder):
        network.requires_grad_(False)
    latents, ids = _encode(sd, pictures), tokenizer(pictures.captions)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(len(ids), (BATCH,), generator=generator)
        new = ids[rows] >= first
        embeddings = encoder.token_embedding(ids[rows].where(~new, 0))
        embeddings = embeddings.masked_scatter(new[..., None], word.vectors[ids[rows][new] - first])
        states = encoder.transform(embeddings + encoder.position_embedding.weight[: ids.shape[1]])
        return _denoising_loss(sd, latents[rows], states, sd.unet, generator)

    recipe = Recipe(minutes, steps, learning_rate, warmup_steps=20, weight_decay=0.0, ema_decay=0.98)
    return train(word, loss, recipe, path, report).vectors.detach()


def train_lora(
    sd: StableDiffusion,
    pictures: Pictures,
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    rank: int = 4,
    steps: int | None = None,
    learning_rate: float = 2e-3,
) -> LowRankChanges:
    """Learn how the pictures look, as changes of the UNet's attention layers.

    Continues the run at `path`, for `minutes` or `steps` in all. Raises InputError for a model that is told more than
    text.
    """
    _check(sd)
    unet = sd.unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changes = LowRankChanges(unet, attention_weights(unet), rank)
    latents, ids, nothing = _encode(sd, pictures), sd.tokenizer(pictures.captions), sd.tokenizer([""])
    with torch.no_grad():
        states, unsaid = sd.text_encoder(ids), sd.text_encoder(nothing)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(len(ids), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < NO_CAPTION
        text = torch.where(dropped[:, None, None], unsaid, states[rows])
        weights = changes.weights(unet)

        def predict(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return functional_call(unet, weights, (x, t, text))

        return _denoising_loss(sd, latents[rows], text, predict, generator)

    recipe = Recipe(minutes, steps, learning_rate, warmup_steps=20, weight_decay=0.0, ema_decay=0.98)
    return train(changes, loss, recipe, path, report)


def _check(sd: StableDiffusion) -> None:
    """A UNet that reads masks, depth or sizes would have to be given them in training, too."""
    if sd.is_xl or sd.task != "text":
        what = "SDXL" if sd.is_xl else f"a model for {sd.task}"
        raise InputError(f"{what} cannot be fine-tuned here; take a text-to-image model of SD 1.x or 2.x.")


def attention_weights(unet: nn.Module) -> list[str]:
    """The weights that a LoRA changes: queries, keys, values and outputs of each attention."""
    blocks = [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    return [f"{name}.{part}.weight" for name in blocks for part in ("q", "k", "v", "out")]


@torch.no_grad()
def _encode(sd: StableDiffusion, pictures: Pictures) -> Tensor:
    """Latents of unit variance (N, C, h, w)."""
    parts = [sd.vae.encode(each).mean for each in pictures.pixels.split(BATCH)]
    return torch.cat(parts) * sd.vae.config.scaling_factor


def _denoising_loss(
    sd: StableDiffusion, x0: Tensor, text: Tensor, predict: Callable[..., Tensor], generator: torch.Generator
) -> Tensor:
    """The loss that all diffusion models are trained with, at timesteps drawn evenly (Ho et al. 2020, eq. 14)."""
    schedule = sd.scheduler.schedule
    t = torch.randint(schedule.num_train_timesteps, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    prediction = predict(schedule.add_noise(x0, noise, t), t, text)
    return F.mse_loss(prediction.float(), schedule.target(x0, noise, t))
