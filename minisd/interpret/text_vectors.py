"""Embedding surgery: other vectors in the place of a prompt's words, and prompts between prompts.

A prompt becomes token vectors (one a token, looked up), then text states (what the encoder makes of them, which the
UNet sees). Both can be cut open; the result goes in as sd(prompt_embeds=...):

    vectors = replaced(sd, "a red circle", "circle", lerp(vector(sd, "circle"), vector(sd, "star"), 0.5))
    sd(prompt_embeds=encode(sd, vectors))
"""

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.errors import InputError, NumericalError
from minisd.interpret import words
from minisd.pipeline import StableDiffusion


@torch.no_grad()
def token_vectors(sd: StableDiffusion, prompt: str) -> Tensor:
    """A prompt's token embeddings, without positions: (1, 77, width)."""
    table = sd.text_encoder.token_embedding
    return table(sd.tokenizer(prompt).to(table.weight.device))


def vector(sd: StableDiffusion, word: str) -> Tensor:
    """The token embeddings of a word: (tokens, width); most words are one token. Raises InputError for an empty one."""
    places = words.find(sd.tokenizer, word, word)
    return token_vectors(sd, word)[0, places.start : places.stop]


def replaced(sd: StableDiffusion, prompt: str, word: str, by: Tensor, occurrence: int = 0) -> Tensor:
    """A prompt's token vectors (1, 77, width), with others in the place of a word: by (tokens, width), or (width,).

    Raises InputError where the word is not, and for vectors of another number, width, or not finite.
    """
    places = words.find(sd.tokenizer, prompt, word, occurrence)
    vectors = token_vectors(sd, prompt)
    width = vectors.shape[2]
    by = by[None] if by.ndim == 1 else by
    if by.shape != (len(places), width) or not torch.isfinite(by).all():
        raise InputError(
            f"the vectors for {word!r} are {tuple(by.shape)}, expected finite ones ({len(places)}, {width}): "
            "one for each token of the word."
        )
    vectors[0, places.start : places.stop] = by.to(vectors)
    return vectors


@torch.no_grad()
def encode(sd: StableDiffusion, vectors: Tensor) -> Tensor:
    """Token vectors (B, L, width), positions not added yet -> text states (B, L, width), for prompt_embeds.

    Raises InputError for another shape, or not finite; NumericalError where the states are not.
    """
    encoder = sd.text_encoder
    vectors = validation.text_states(vectors, "vectors", encoder.config.width)
    if vectors.shape[1] > encoder.config.max_length:
        raise InputError(f"vectors are {vectors.shape[1]} tokens, expected at most {encoder.config.max_length}.")
    positions = encoder.position_embedding.weight
    states = encoder.transform(vectors.to(positions) + positions[: vectors.shape[1]])
    if not torch.isfinite(states).all():
        raise NumericalError("the text states are not finite; look at the vectors, or try float32.")
    return states


def lerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """(1 - weight) first + weight second, of one shape: the straight way. Raises InputError."""
    _check_pair(first, second)
    weight = validation.real_number(weight, "weight", -1e3, 1e3)
    return (1 - weight) * first + weight * second


def slerp(first: Tensor, second: Tensor, weight: float, dims: int | tuple[int, ...] = -1) -> Tensor:
    """Along the great circle, which keeps the length on the way (Shoemake 1985), of one shape.

    dims: what makes up one vector; the last for token vectors and text states, (1, 2, 3) for noise (B, C, h, w).
    Vectors in one line have no circle, there it is lerp. Raises InputError.
    """
    straight = lerp(first, second, weight)
    lengths = [torch.linalg.vector_norm(each, dim=dims, keepdim=True) for each in (first, second)]
    cosine = (first * second).sum(dims, keepdim=True) / (lengths[0] * lengths[1])
    angle = torch.acos(cosine.clamp(-1, 1))
    bent = (torch.sin((1 - weight) * angle) * first + torch.sin(weight * angle) * second) / torch.sin(angle)
    return torch.where(cosine.abs() < 1 - 1e-5, bent, straight)  # NaN, of a vector of length 0, is not


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or not first.is_floating_point() or not second.is_floating_point():
        raise InputError(
            f"cannot mix {first.dtype} {tuple(first.shape)} with {second.dtype} {tuple(second.shape)}, expected two "
            "tensors of floats of one shape; words of one number of tokens have it."
        )
