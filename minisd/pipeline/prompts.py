"""What a pipeline is told in words: texts, or what text encoders make of them; checked before any work."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.errors import InputError

Texts = str | Sequence[str]


@dataclass(frozen=True)
class Said:
    """One side of guidance, a row for each picture: texts, and those for SDXL's second text encoder.

    embeds (B, L, context_width) and, for SDXL, pooled (B, pooled width) are used in their place.
    """

    texts: list[str]
    texts_2: list[str]
    embeds: Tensor | None = None
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Given:
    """The arguments of a call for one side of guidance, whose names begin with `prefix`: "" or "negative_"."""

    prefix: str
    prompt: Texts | None
    prompt_2: Texts | None
    prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None

    def name(self, argument: str) -> str:
        """What the caller knows an argument as."""
        return f"{self.prefix}{argument}"


@dataclass(frozen=True)
class Listener:
    """How a model is spoken to: its text encoders, how wide their states are and, of SDXL, the pooled text.

    words: all that it was taught, or "" where nobody could list them.
    """

    encoders: int
    context_width: int
    pooled_width: int | None
    max_length: int  # of a text, in tokens
    words: str

    def hear(self, prompt: Given, negative: Given, per_prompt: int) -> tuple[Said, Said]:
        """What is said on both sides, with `per_prompt` pictures of each prompt. Raises InputError."""
        for given in (prompt, negative):
            self._check(given)
        states = prompt.prompt_embeds
        texts = validation.prompts(prompt.prompt) if states is None else [""] * len(states)  # as many, not to be read
        sides = (
            self._side(prompt, texts, len(texts), per_prompt),
            self._side(negative, negative.prompt, len(texts), per_prompt),
        )
        self._warn_of_foreign_words([text for side in sides for text in (*side.texts, *side.texts_2)])
        return sides

    def check_lengths(self, prompt: Said, negative: Said) -> None:
        """Guidance wants both sides of one length, which for texts is always the same. Raises InputError."""
        lengths = [self.max_length if side.embeds is None else side.embeds.shape[1] for side in (prompt, negative)]
        if lengths[0] != lengths[1]:
            raise InputError(
                f"the text states of the prompt are {lengths[0]} long, those of the negative prompt {lengths[1]}, "
                "expected one length; give both as embeds, or neither."
            )

    def _check(self, given: Given) -> None:
        """Each argument by itself, and that none is given for what another says already."""
        embeds, pooled = given.prompt_embeds, given.pooled_prompt_embeds
        name, names = given.name("prompt_embeds"), given.name("pooled_prompt_embeds")
        if given.prompt_2 is not None and self.encoders == 1:
            raise InputError(f"{given.name('prompt_2')} is for SDXL's second text encoder; this model has one.")
        if pooled is not None and self.pooled_width is None:
            raise InputError(f"{names} is for SDXL, and this model does not hear it; leave it out.")
        if embeds is not None:
            validation.text_states(embeds, name, self.context_width)
            for argument, text in (("prompt", given.prompt), ("prompt_2", given.prompt_2)):
                if text is not None and text != "":
                    raise InputError(f"{given.name(argument)} and {name} were both given; give one of them.")
        if (embeds is None) != (pooled is None) and self.pooled_width is not None:
            one, other = (name, names) if pooled is None else (names, name)
            raise InputError(
                f"{one} came without {other}; SDXL hears both: see encode_prompt and encode_pooled of the pipeline."
            )
        if pooled is not None and embeds is not None:
            right = isinstance(pooled, Tensor) and tuple(pooled.shape) == (len(embeds), self.pooled_width)
            if not right or not pooled.is_floating_point() or not torch.isfinite(pooled).all():
                shape = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
                raise InputError(
                    f"{names} is {shape}, expected finite pooled text ({len(embeds)}, {self.pooled_width}), "
                    "as encode_pooled gives."
                )

    def _side(self, given: Given, prompt: Texts | None, count: int, per_prompt: int) -> Said:
        texts = _rows(prompt, given.name("prompt"), count, per_prompt)
        second = given.prompt_2
        embeds, pooled = (
            validation.one_each(values, given.name(argument), "text states", count * per_prompt, per_prompt)
            for argument, values in (
                ("prompt_embeds", given.prompt_embeds),
                ("pooled_prompt_embeds", given.pooled_prompt_embeds),
            )
        )
        texts_2 = texts if second is None else _rows(second, given.name("prompt_2"), count, per_prompt)
        return Said(texts, texts_2, embeds, pooled)

    def _warn_of_foreign_words(self, texts: list[str]) -> None:
        foreign = validation.foreign_words(texts, self.words)
        if foreign:
            warnings.warn(
                f"this model was never taught {', '.join(map(repr, foreign))}, so expect something else; "
                f"it knows: {self.words}.",
                stacklevel=6,
            )


def _rows(value: Texts | None, name: str, count: int, per_prompt: int) -> list[str]:
    """One text for each picture; a single one is for all."""
    texts = validation.prompts(value, name)
    if isinstance(value, str):
        texts = texts * count
    if len(texts) != count:
        raise InputError(f"{name} holds {len(texts)} texts for {count} prompts; give as many.")
    return [text for text in texts for _ in range(per_prompt)]
