"""Textual inversion: train the embedding vectors of a new word, while the model stays frozen (Gal et al. 2022)."""

import copy

import torch
from torch import Tensor, nn

from minisd.errors import InputError
from minisd.interpret import text_vectors
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import Condition
from minisd.training.captioned_images import CaptionedImages
from minisd.training.checkpointing import gradient_checkpointing
from minisd.training.denoising import check_model, denoising_losses, encode_images, freeze
from minisd.training.run_files import fingerprint
from minisd.training.trainer import Recipe, TrainingRun, train

BATCH = 8
RECIPE = Recipe(learning_rate=5e-3, warmup_steps=20, weight_decay=0.0, ema_decay=0.98)


class TokenVectors(nn.Module):
    """The embedding vectors of a new token, (n, width)."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())


def train_embedding(
    sd: StableDiffusion,
    pictures: CaptionedImages,
    token: str,
    like: str,
    run: TrainingRun,
    recipe: Recipe = RECIPE,
    batch: int = BATCH,
    checkpointing: bool = False,
) -> Tensor:
    """Train the embedding vectors (n, width) of a new token, initialised with those of the word `like`.

    batch: images a step. checkpointing: compute activations twice, which needs less memory.
    Raises InputError if the token exists already or is missing from a caption, if `like` is no known word, and for
    models other than text-to-image SD 1.x and 2.x; what `train` raises for the run's file.
    """
    check_model(sd)
    if sd.is_xl:
        raise InputError("an embedding of SDXL cannot be trained; use a text-to-image model of SD 1.x or 2.x.")
    if not all(token in text for text in pictures.captions):
        without = next(text for text in pictures.captions if token not in text)
        raise InputError(f"the caption {without!r} does not contain the new token {token!r}; add it to every caption.")
    encoder, tokenizer = sd.text_encoder, copy.deepcopy(sd.tokenizer)
    word = TokenVectors(text_vectors.word_vectors(sd, like).float())
    first = tokenizer.add_token(token, len(word.vectors))
    run = run.of(
        batch=batch,
        start_model=fingerprint(sd.unet, sd.vae, sd.text_encoder),
        pictures_and_captions=fingerprint(pictures.pixels, *pictures.captions),
        token=token,
        like=like,
    )
    run.check()
    freeze(sd.unet, encoder)
    latents, ids = encode_images(sd, pictures.pixels), tokenizer(pictures.captions).to(sd.device)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(len(ids), (batch,), generator=generator)
        new = ids[rows] >= first
        embeddings = encoder.token_embedding(ids[rows].where(~new, 0))
        embeddings = embeddings.masked_scatter(new[..., None], word.vectors[ids[rows][new] - first])
        states = encoder.transform(embeddings + encoder.position_embedding.weight[: ids.shape[1]])
        x0, condition = latents[rows].to(sd.device), Condition(states)
        with gradient_checkpointing(sd.unet, checkpointing):
            return denoising_losses(sd.scheduler.schedule, sd.unet, x0, condition, generator).mean()

    return train(word, loss, recipe, run).vectors.detach()
