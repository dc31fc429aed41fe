"""Textual inversion: a new word whose embedding vectors were learned from images (Gal et al. 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minisd.errors import InputError, MismatchError, NumericalError
from minisd.models import CLIPTextTransformer
from minisd.pipeline.conditioning import TokenizerAndEncoder


def add_embeddings(words: Mapping[str, Sequence[tuple[TokenizerAndEncoder, Tensor]]]) -> None:
    """Add tokens to text encoders, each with its vectors (n, width) for each encoder.

    The tokenizer appends n ids, and the encoder's embedding table grows by n rows; a prompt with the token is n ids
    longer. In the files of a saved model the vectors are the tokens `token`, `token_1`, ... as in the reference.

    Raises, before anything is changed: InputError (the token exists, is blank, or is too long for a prompt),
    MismatchError (shape), NumericalError (NaN or infinity).
    """
    for token, parts in words.items():
        for part, vectors in parts:
            _check(token, part, vectors)
    if len({token.lower() for token in words}) < len(words):
        raise InputError(f"{', '.join(words)} differ in case only, and prompts ignore case; add one of them.")
    for token, parts in words.items():
        for (tokenizer, encoder), vectors in parts:
            first = tokenizer.add_token(token, len(vectors))
            set_rows(encoder, first, vectors, tokenizer.eos_id)


def _check(token: str, part: TokenizerAndEncoder, vectors: Tensor) -> None:
    width, room = part.encoder.config.width, part.tokenizer.max_length - 2
    if vectors.dim() != 2 or vectors.shape[1] != width or not len(vectors) or not vectors.is_floating_point():
        raise MismatchError(
            f"the vectors of {token!r} are {vectors.dtype} of shape {tuple(vectors.shape)}, expected floating-point "
            f"numbers of shape (n, {width}); use an embedding made for this text encoder."
        )
    if not torch.isfinite(vectors).all():
        raise NumericalError(f"the vectors of {token!r} hold NaN or infinity; download the embedding again.")
    if len(vectors) > room:
        raise InputError(f"{token!r} has {len(vectors)} vectors, expected at most {room} for a prompt.")
    part.tokenizer.check_new_token(token, len(vectors))


def set_rows(encoder: CLIPTextTransformer, first: int, vectors: Tensor, end_id: int) -> None:
    """Write vectors to the rows of the embedding table from `first` on, in a copy: the table may be a mapped file."""
    table = encoder.token_embedding
    with torch.inference_mode(False), torch.no_grad():
        old = table.weight.data
        table.weight.data = torch.cat([old[:first], vectors.to(old.device, old.dtype), old[first + len(vectors) :]])
    table.num_embeddings = len(table.weight)
    encoder.config = replace(encoder.config, vocab_size=len(table.weight), end_id=end_id)
