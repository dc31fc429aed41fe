"""Fine-tune a trained pipeline on a few images: a new word (textual inversion), or a style or subject (LoRA).

All weights of the model stay frozen. Textual inversion trains the embedding vectors of the new word (Gal et al. 2022);
LoRA trains low-rank changes of the UNet's attention layers (Hu et al. 2021).
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minisd.adapters import LowRankChanges
from minisd.errors import InputError
from minisd.interpret import text_vectors
from minisd.models.layers import Attention
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import Condition
from minisd.training.captioned_images import CaptionedImages
from minisd.training.denoising import check_model, denoising_losses, encode_images
from minisd.training.run_files import fingerprint
from minisd.training.trainer import Recipe, TrainingRun, train

EMPTY_PROMPTS = 0.1  # share of a LoRA's captions that are replaced by the empty prompt, for classifier-free guidance
BATCH = 8
RECIPE = Recipe(warmup_steps=20, weight_decay=0.0, ema_decay=0.98)


class TokenVectors(nn.Module):
    """The embedding vectors of a new token, (n, width)."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())


def train_embedding(
    sd: StableDiffusion, pictures: CaptionedImages, token: str, like: str, run: TrainingRun, learning_rate: float = 5e-3
) -> Tensor:
    """Train the embedding vectors (n, width) of a new token, initialised with those of the word `like`.

    Raises InputError if the token exists already or is missing from a caption, if `like` is no known word, and for
    models other than text-to-image SD 1.x and 2.x; what `train` raises for the run's file.
    """
    _check_model(sd)
    if not all(token in text for text in pictures.captions):
        without = next(text for text in pictures.captions if token not in text)
        raise InputError(f"the caption {without!r} does not contain the new token {token!r}; add it to every caption.")
    encoder, tokenizer = sd.text_encoder, copy.deepcopy(sd.tokenizer)
    word = TokenVectors(text_vectors.word_vectors(sd, like).float())
    first = tokenizer.add_token(token, len(word.vectors))
    run = _of(run, sd, pictures).of(token=token, like=like)
    run.check()
    for network in (sd.unet, encoder):
        network.requires_grad_(False)
    latents, ids = encode_images(sd, pictures.pixels), tokenizer(pictures.captions)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(len(ids), (BATCH,), generator=generator)
        new = ids[rows] >= first
        embeddings = encoder.token_embedding(ids[rows].where(~new, 0))
        embeddings = embeddings.masked_scatter(new[..., None], word.vectors[ids[rows][new] - first])
        states = encoder.transform(embeddings + encoder.position_embedding.weight[: ids.shape[1]])
        return denoising_losses(sd.scheduler.schedule, sd.unet, latents[rows], Condition(states), generator).mean()

    return train(word, loss, replace(RECIPE, learning_rate=learning_rate), run).vectors.detach()


def train_lora(
    sd: StableDiffusion, pictures: CaptionedImages, run: TrainingRun, rank: int = 4, learning_rate: float = 2e-3
) -> LowRankChanges:
    """Train low-rank changes of the UNet's attention layers, so that the model generates images like the given ones.

    Raises InputError for models other than text-to-image SD 1.x and 2.x, and what `train` raises for the run's file.
    """
    _check_model(sd)
    run = _of(run, sd, pictures).of(rank=rank)
    run.check()
    unet = sd.unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changes = LowRankChanges(unet, attention_weight_names(unet), rank)
    latents, ids = encode_images(sd, pictures.pixels), sd.tokenizer(pictures.captions)
    with torch.no_grad():
        states, empty = sd.text_encoder(ids), sd.text_encoder(sd.tokenizer([""]))

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(len(ids), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < EMPTY_PROMPTS
        text = torch.where(dropped[:, None, None], empty, states[rows])
        weights = changes.weights(unet)

        def predict(x: Tensor, t: Tensor, text: Tensor, pooled: None) -> Tensor:
            return functional_call(unet, weights, (x, t, text))

        return denoising_losses(sd.scheduler.schedule, predict, latents[rows], Condition(text), generator).mean()

    return train(changes, loss, replace(RECIPE, learning_rate=learning_rate), run)


def _of(run: TrainingRun, sd: StableDiffusion, pictures: CaptionedImages) -> TrainingRun:
    """The run, with the facts that every fine-tuning is a run of."""
    return run.of(
        batch=BATCH,
        start_model=fingerprint(sd.unet, sd.vae, sd.text_encoder),
        pictures_and_captions=fingerprint(pictures.pixels, *pictures.captions),
    )


def _check_model(sd: StableDiffusion) -> None:
    """Refuse SDXL, which has two text encoders, and what `check_model` refuses."""
    check_model(sd)
    if sd.is_xl:
        raise InputError("SDXL cannot be fine-tuned; use a text-to-image model of SD 1.x or 2.x.")


def attention_weight_names(unet: nn.Module) -> list[str]:
    """The names of the weights that a LoRA changes: queries, keys, values and outputs of each attention layer."""
    blocks = [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    return [f"{name}.{part}.weight" for name in blocks for part in ("q", "k", "v", "out")]
