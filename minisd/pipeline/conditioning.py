"""From prompts to the condition of the UNet: the states of one or two text encoders and, for SDXL, a vector."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from minisd._internal.nonfinite import explain_nonfinite
from minisd.configs import UNetConfig
from minisd.errors import InputError, NumericalError
from minisd.models import CLIPTextTransformer
from minisd.pipeline.prompts import PromptBatch
from minisd.pipeline.sdxl_sizes import MicroConditioning, append_sizes
from minisd.tokenizer import Tokenizer


class Condition(NamedTuple):
    """The UNet's condition: text states (B, L, context_width); for SDXL, pooled text and sizes (B, pooled_width)."""

    text: Tensor
    pooled_and_sizes: Tensor | None = None

    def to(self, target: torch.dtype | torch.device) -> Self:
        """The same in another dtype or on another device."""
        return self._map(lambda tensor: tensor.to(target))

    def rows(self, indices: Tensor) -> Self:
        """The rows with these indices."""
        return self._map(lambda tensor: tensor[indices.to(tensor.device)])

    def last(self, count: int) -> Self:
        """The last rows: those of the prompts, without the negative prompts."""
        return self._map(lambda tensor: tensor[-count:])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self._replace(
            text=change(self.text),
            pooled_and_sizes=None if self.pooled_and_sizes is None else change(self.pooled_and_sizes),
        )


class TokenizerAndEncoder(NamedTuple):
    """A text encoder and its tokenizer."""

    tokenizer: Tokenizer
    encoder: CLIPTextTransformer


def check_widths(parts: Sequence[TokenizerAndEncoder], unet: UNetConfig) -> None:
    """Check that text encoders and UNet fit together. Raises InputError."""
    width = sum(part.encoder.config.width for part in parts)
    if width != unet.context_width:
        raise InputError(f"the text encoder gives vectors of {width}, the UNet expects {unet.context_width}.")
    for tokenizer, encoder in parts:
        if len(tokenizer) > encoder.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} ids, the text encoder {encoder.config.vocab_size}; "
                "take both from one model."
            )
    if unet.pooled_width is not None and size_count(parts, unet) not in (5, 6):
        raise InputError(
            f"the UNet reads a vector of {unet.pooled_width}, expected the text encoder's pooled width "
            f"{pooled_width(parts)} plus five or six sizes of {unet.size_embedding_width}; take both from one model."
        )


def pooled_width(parts: Sequence[TokenizerAndEncoder]) -> int:
    """Width of the pooled text, which comes from the last encoder."""
    config = parts[-1].encoder.config
    return config.width if config.projection_width is None else config.projection_width


def size_count(parts: Sequence[TokenizerAndEncoder], unet: UNetConfig) -> int:
    """How many size numbers an SDXL UNet reads: 6 for the base, 5 for the refiner; 0 for SD 1 and 2."""
    if unet.pooled_width is None:
        return 0
    count, rest = divmod(unet.pooled_width - pooled_width(parts), unet.size_embedding_width)
    return 0 if rest else count


def make_condition(
    parts: Sequence[TokenizerAndEncoder],
    unet: UNetConfig,
    negative: PromptBatch | None,
    prompt: PromptBatch,
    micro: MicroConditioning,
    zero_empty: bool,
) -> Condition:
    """The condition for a run: rows of the negative prompts first, where guidance needs them, then the prompts.

    micro: resolved for the image's size. zero_empty: SDXL's condition for an empty negative prompt is zeros.
    """
    batches = [prompt] if negative is None else [negative, prompt]
    text, pooled = _encode_batches(parts, batches, is_xl=unet.pooled_width is not None)
    if pooled is None:
        return Condition(text)
    if zero_empty and negative is not None and negative.embeds is None:
        pairs = zip(negative.texts, negative.texts_2, strict=True)
        empty = [row for row, pair in enumerate(pairs) if pair == ("", "")]
        text[empty], pooled[empty] = 0, 0
    count = size_count(parts, unet)
    sizes = [micro.as_vector(count, negative=batch is negative) for batch in batches for _ in batch.texts]
    return Condition(text, append_sizes(pooled, sizes, unet.size_embedding_width))


def _encode_batches(
    parts: Sequence[TokenizerAndEncoder], batches: Sequence[PromptBatch], is_xl: bool
) -> tuple[Tensor, Tensor | None]:
    """As `encode_texts`, for batches of texts and of given embeddings; all texts are encoded in one call."""
    to_encode = [batch for batch in batches if batch.embeds is None]
    states: Iterator[Tensor] = iter(())
    pools: Iterator[Tensor] = iter(())
    if to_encode:
        texts = [text for batch in to_encode for text in batch.texts]
        texts_2 = [text for batch in to_encode for text in batch.texts_2]
        encoded, pooled = encode_texts(parts, [texts, texts_2][: len(parts)], is_xl)
        counts = [len(batch.texts) for batch in to_encode]
        states = iter(encoded.split(counts))
        pools = iter(() if pooled is None else pooled.split(counts))
    device = parts[0].encoder.token_embedding.weight.device
    text = [next(states) if batch.embeds is None else batch.embeds.to(device) for batch in batches]
    vectors = [next(pools, None) if batch.pooled is None else batch.pooled.to(device) for batch in batches]
    known = [vector for vector in vectors if vector is not None]
    return torch.cat(text), torch.cat(known) if known else None


def encode_texts(
    parts: Sequence[TokenizerAndEncoder], texts: Sequence[Sequence[str]], is_xl: bool
) -> tuple[Tensor, Tensor | None]:
    """Text states (B, L, width of all encoders) and, for SDXL, the last encoder's pooled text (B, P).

    texts: B for each encoder, in the order of the parts. SD 1 and 2 use the states after the final norm; SDXL uses
    the states before the last layer. Raises NumericalError for NaN.
    """
    states, pooled = [], None
    for (tokenizer, encoder), own in zip(parts, texts, strict=True):
        ids = tokenizer(list(own)).to(encoder.token_embedding.weight.device)
        if is_xl:
            early = encoder.before_last(encoder.embed(ids))
            states.append(early)
            if encoder is parts[-1].encoder:
                pooled = encoder.pool(encoder.finish(early), ids)
        else:
            states.append(encoder(ids))
        if not torch.isfinite(states[-1]).all() or (pooled is not None and not torch.isfinite(pooled).all()):
            raise NumericalError(f"the text states are not finite: {explain_nonfinite(encoder)}.")
    return torch.cat(states, dim=-1), pooled
