"""Embedding surgery: replace the vectors of a prompt's words, and mix prompts.

The tokens of a prompt become token vectors, rows of the embedding table. The text encoder turns these into text states,
which condition the UNet. Both can be changed and passed on as sd(prompt_embeds=...):

    between = lerp(word_vectors(sd, "circle"), word_vectors(sd, "star"), 0.5)
    vectors = replace_word(sd, "a red circle", "circle", between)
    sd(prompt_embeds=encode_vectors(sd, vectors))
"""

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.errors import InputError, NumericalError
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer


def token_span(tokenizer: Tokenizer, prompt: str, word: str, occurrence: int = 0) -> range:
    """The positions of a word, or of several consecutive words, among the token ids of a prompt.

    Only whole words match. occurrence: 0 is the first one in the prompt. The start and end tokens match their own
    names, tokenizer.bos and tokenizer.eos. Raises InputError if the word is not in the prompt.
    """
    row = tokenizer.encode(prompt).ids[0].tolist()
    pieces = tokenizer.encode(word, padding=False, truncation=False).ids[0, 1:-1].tolist()
    if not pieces:
        raise InputError(f"the word is {word!r}, expected a word of the prompt.")
    starts = [k for k in range(len(row)) if row[k : k + len(pieces)] == pieces]
    occurrence = validation.whole_number(occurrence, "occurrence", 0, 10**6)
    if occurrence >= len(starts):
        times = f"occurs {len(starts)} times" if starts else "is not"
        raise InputError(
            f"{word!r} {times} among the first {tokenizer.max_length - 2} tokens of {prompt!r}, expected at least "
            f"{occurrence + 1}; give a whole word of the prompt, its first occurrence is 0."
        )
    return range(starts[occurrence], starts[occurrence] + len(pieces))


@torch.no_grad()
def token_vectors(sd: StableDiffusion, prompt: str) -> Tensor:
    """The token embeddings of a prompt, without positions: (1, 77, width)."""
    table = sd.text_encoder.token_embedding
    return table(sd.tokenizer(prompt).to(table.weight.device))


def word_vectors(sd: StableDiffusion, word: str) -> Tensor:
    """The token embeddings of a word: (tokens, width); most words are one token. Raises InputError for no word."""
    span = token_span(sd.tokenizer, word, word)
    return token_vectors(sd, word)[0, span.start : span.stop]


def replace_word(sd: StableDiffusion, prompt: str, word: str, by: Tensor, occurrence: int = 0) -> Tensor:
    """The token vectors of a prompt (1, 77, width) with other vectors for a word: by (tokens, width) or (width,).

    Raises InputError if the word is not in the prompt, and for vectors of another shape or not finite.
    """
    span = token_span(sd.tokenizer, prompt, word, occurrence)
    vectors = token_vectors(sd, prompt)
    width = vectors.shape[2]
    by = by[None] if by.ndim == 1 else by
    if by.shape != (len(span), width) or not torch.isfinite(by).all():
        raise InputError(
            f"the vectors for {word!r} are {tuple(by.shape)}, expected finite ones ({len(span)}, {width}): "
            "one for each token of the word."
        )
    vectors[0, span.start : span.stop] = by.to(vectors)
    return vectors


@torch.no_grad()
def encode_vectors(sd: StableDiffusion, vectors: Tensor) -> Tensor:
    """Token vectors (B, L, width), without positions -> text states (B, L, width), for prompt_embeds.

    Raises InputError for vectors of another shape or not finite, NumericalError for text states that are not finite.
    """
    encoder = sd.text_encoder
    vectors = validation.text_states(vectors, "vectors", encoder.config.width)
    if vectors.shape[1] > encoder.config.max_length:
        raise InputError(f"vectors has {vectors.shape[1]} tokens, expected at most {encoder.config.max_length}.")
    positions = encoder.position_embedding.weight
    states = encoder.transform(vectors.to(positions) + positions[: vectors.shape[1]])
    if not torch.isfinite(states).all():
        raise NumericalError("the text states are not finite; check the vectors, or try float32.")
    return states


def lerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Linear interpolation, (1 - weight) first + weight second, of one shape. Raises InputError."""
    _check_pair(first, second)
    weight = validation.real_number(weight, "weight", -1e3, 1e3)
    return (1 - weight) * first + weight * second


def slerp(first: Tensor, second: Tensor, weight: float, dims: int | tuple[int, ...] = -1) -> Tensor:
    """Spherical interpolation along the great circle, which keeps the length (Shoemake 1985), of one shape.

    dims: the dimensions of one vector; the last for token vectors and text states, (1, 2, 3) for noise (B, C, h, w).
    For parallel vectors, which define no circle, it is lerp. Raises InputError.
    """
    straight = lerp(first, second, weight)
    lengths = [torch.linalg.vector_norm(each, dim=dims, keepdim=True) for each in (first, second)]
    cosine = (first * second).sum(dims, keepdim=True) / (lengths[0] * lengths[1])
    angle = torch.acos(cosine.clamp(-1, 1))
    bent = (torch.sin((1 - weight) * angle) * first + torch.sin(weight * angle) * second) / torch.sin(angle)
    return torch.where(cosine.abs() < 1 - 1e-5, bent, straight)  # a vector of length 0 has no cosine


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or not first.is_floating_point() or not second.is_floating_point():
        raise InputError(
            f"cannot mix {first.dtype} {tuple(first.shape)} with {second.dtype} {tuple(second.shape)}, expected two "
            "tensors of floats of one shape; use words with the same number of tokens."
        )
