"""From prompts to what the UNet is told: the states of one text encoder or two and, for SDXL, a vector with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from minisd._internal.nonfinite import diagnosis
from minisd._internal.validation import real_number, whole_number
from minisd.configs import UNetConfig
from minisd.errors import InputError, NumericalError
from minisd.models import CLIPTextTransformer
from minisd.models.unet import sinusoids
from minisd.pipeline.prompts import Said
from minisd.tokenizer import Tokenizer

Size = tuple[int, int]


class Condition(NamedTuple):
    """What the UNet is told: text states (B, L, context_width); SDXL's pooled text and sizes, (B, pooled_width)."""

    text: Tensor
    vector: Tensor | None = None


class TextPart(NamedTuple):
    """A text encoder and the tokenizer that goes with it."""

    tokenizer: Tokenizer
    encoder: CLIPTextTransformer


@dataclass(frozen=True)
class MicroConditioning:
    """What SDXL is told about a picture beside the text (Podell et al. 2023, section 2.2).

    Sizes are (height, width) in pixels, those of the picture asked for unless given; crop is (top, left). A small
    original_size asks for a blurred picture, a crop for one that is cut off. The refiner hears a score from 0 to 10
    in place of the target size, the negative prompt another.
    """

    original_size: Size | None = None
    crop: Size = (0, 0)
    target_size: Size | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def __post_init__(self) -> None:
        for name, least in (("original_size", 1), ("target_size", 1), ("crop", 0)):
            pair = getattr(self, name)
            if pair is None and name != "crop":
                continue
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InputError(f"{name} is {pair!r}, expected two whole numbers such as (1024, 1024).")
            for side in pair:
                whole_number(side, name, least, 1_000_000)
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            real_number(getattr(self, name), name, 0, 10)

    def of(self, height: int, width: int) -> "MicroConditioning":
        """For a picture of that many pixels, nothing left open."""
        own = (height, width)
        return replace(self, original_size=self.original_size or own, target_size=self.target_size or own)

    def numbers(self, count: int, negative: bool = False) -> list[float]:
        """As the UNet reads them: six, or five with the score."""
        assert self.original_size is not None  # `of` has seen to it
        assert self.target_size is not None
        score = self.negative_aesthetic_score if negative else self.aesthetic_score
        return [*self.original_size, *self.crop, *(self.target_size if count == 6 else (score,))]


def check_widths(parts: Sequence[TextPart], unet: UNetConfig) -> None:
    """Whether text encoders and UNet fit. Raises InputError."""
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
            f"the UNet reads a vector of {unet.pooled_width}, which the text encoder's pooled "
            f"{pooled_width(parts)} and five or six sizes of {unet.size_embedding_width} do not make."
        )


def pooled_width(parts: Sequence[TextPart]) -> int:
    """Width of the pooled text: the last encoder gives it."""
    config = parts[-1].encoder.config
    return config.width if config.projection_width is None else config.projection_width


def size_count(parts: Sequence[TextPart], unet: UNetConfig) -> int:
    """How many numbers an SDXL UNet is told beside the text: 6 for the base, 5 for the refiner; 0 for SD 1 and 2."""
    if unet.pooled_width is None:
        return 0
    count, rest = divmod(unet.pooled_width - pooled_width(parts), unet.size_embedding_width)
    return 0 if rest else count


def condition(
    parts: Sequence[TextPart],
    unet: UNetConfig,
    negative: Said | None,
    prompt: Said,
    micro: MicroConditioning,
    zero_empty: bool,
) -> Condition:
    """What a UNet is told: the negative prompts, whose rows come first, if there is guidance; and the prompts.

    micro: nothing left open (`MicroConditioning.of`). zero_empty: an empty negative prompt is zeros to SDXL.
    """
    sides = [prompt] if negative is None else [negative, prompt]
    text, pooled = _encode_sides(parts, sides, is_xl=unet.pooled_width is not None)
    if pooled is None:
        return Condition(text)
    if zero_empty and negative is not None and negative.embeds is None:
        texts = zip(negative.texts, negative.texts_2, strict=True)
        silent = [row for row, both in enumerate(texts) if both == ("", "")]
        text[silent], pooled[silent] = 0, 0
    count = size_count(parts, unet)
    numbers = [micro.numbers(count, negative=side is negative) for side in sides for _ in side.texts]
    return Condition(text, with_sizes(pooled, numbers, unet.size_embedding_width))


def _encode_sides(parts: Sequence[TextPart], sides: Sequence[Said], is_xl: bool) -> tuple[Tensor, Tensor | None]:
    """As `encode`: states that are given as they are, and all texts read in one go."""
    device = parts[0].encoder.token_embedding.weight.device
    read = [side for side in sides if side.embeds is None]
    rows: dict[int, tuple[Tensor, Tensor | None]] = {
        id(side): (side.embeds.to(device), None if side.pooled is None else side.pooled.to(device))
        for side in sides
        if side.embeds is not None
    }
    if read:
        texts = [text for side in read for text in side.texts], [text for side in read for text in side.texts_2]
        states, pooled = encode(parts, texts[: len(parts)], is_xl)
        start = 0
        for side in read:
            own = slice(start, start := start + len(side.texts))
            rows[id(side)] = states[own], None if pooled is None else pooled[own]
    pairs = [rows[id(side)] for side in sides]
    vectors = [vector for _, vector in pairs if vector is not None]
    return torch.cat([text for text, _ in pairs]), torch.cat(vectors) if vectors else None


def encode(parts: Sequence[TextPart], texts: Sequence[Sequence[str]], is_xl: bool) -> tuple[Tensor, Tensor | None]:
    """Text states (B, L, width of all encoders) and, for SDXL, the last encoder's pooled text (B, P).

    texts: B for each encoder, in the order of the parts. SD 1 and 2 read the states after the final norm; SDXL those
    before the last layer, as they are. Raises NumericalError for NaN.
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
            raise NumericalError(f"the text states are not finite: {diagnosis(encoder)}.")
    return torch.cat(states, dim=-1), pooled


def with_sizes(pooled: Tensor, numbers: Sequence[Sequence[float]], width: int) -> Tensor:
    """Pooled text (B, P) and a row of numbers for each, as sinusoids of that width -> (B, P + N width)."""
    rows = torch.tensor(numbers, dtype=torch.float32, device=pooled.device)
    return torch.cat([pooled, sinusoids(rows.flatten(), width).reshape(len(rows), -1).to(pooled.dtype)], dim=1)
