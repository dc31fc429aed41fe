"""Textual inversion: a new word whose vectors were learned from pictures, all else frozen (Gal et al. 2022)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.errors import InputError, MismatchError, NumericalError
from minisd.models import CLIPTextTransformer
from minisd.tokenizer import Tokenizer


class TextPart(NamedTuple):
    """A text encoder and the tokenizer that writes its ids."""

    tokenizer: Tokenizer
    encoder: CLIPTextTransformer


def add_embedding(token: str, parts: Sequence[tuple[TextPart, Tensor]]) -> None:
    """Teach text encoders a token: its vectors, (n, width), in each of them; in a prompt it takes n places.

    Its ids follow those that the tokenizer has; the encoder's table of embeddings grows by n rows. In the files of a
    saved model the vectors are the tokens `token`, `token_1`, ... as in the reference.

    Raises, before anything is changed: InputError (the token exists, is blank, or too long for a prompt),
    MismatchError (shape), NumericalError (NaN or infinity).
    """
    for (tokenizer, encoder), vectors in parts:
        width = encoder.config.width
        if vectors.dim() != 2 or vectors.shape[1] != width or not len(vectors) or not vectors.is_floating_point():
            raise MismatchError(
                f"the vectors of {token!r} are {vectors.dtype} of shape {tuple(vectors.shape)}, expected "
                f"floating-point numbers of shape (n, {width}); use an embedding made for this text encoder."
            )
        if not torch.isfinite(vectors).all():
            raise NumericalError(f"the vectors of {token!r} hold NaN or infinity; get the embedding again.")
        room = tokenizer.max_length - 2
        if len(vectors) > room:
            raise InputError(f"{token!r} has {len(vectors)} vectors, a prompt has room for {room}.")
        tokenizer.check_new_token(token, len(vectors))
    for (tokenizer, encoder), vectors in parts:
        first = len(tokenizer)
        tokenizer.add_token(token, len(vectors))
        _set_rows(encoder, first, vectors, tokenizer.eos_id)


def _set_rows(encoder: CLIPTextTransformer, first: int, vectors: Tensor, end_id: int) -> None:
    """Put vectors into the table of embeddings from row `first` on, in a new table: the old one may be a file."""
    table = encoder.token_embedding
    with torch.inference_mode(False), torch.no_grad():
        old = table.weight.data
        table.weight.data = torch.cat([old[:first], vectors.to(old.device, old.dtype), old[first + len(vectors) :]])
    table.num_embeddings = len(table.weight)
    encoder.config = replace(encoder.config, vocab_size=len(table.weight), end_id=end_id)
