"""Prompts: validated texts, or precomputed embeddings in their place."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from minisd._internal import validation
from minisd._internal.messages import LISTED, listed
from minisd.errors import InputError

Texts = str | Sequence[str]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts or negative prompts, one row for each image: texts, and those for SDXL's second text encoder.

    embeds (B, L, context_width) and, for SDXL, pooled (B, pooled width) replace the texts where they are given.
    """

    texts: list[str]
    texts_2: list[str]
    embeds: Tensor | None = None
    pooled: Tensor | None = None


@dataclass(frozen=True)
class PromptArguments:
    """The arguments of a call for the prompt (prefix "") or for the negative prompt (prefix "negative_")."""

    prefix: str
    prompt: Texts | None
    prompt_2: Texts | None
    prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None

    def name(self, argument: str) -> str:
        """The name under which the caller passed an argument."""
        return f"{self.prefix}{argument}"


@dataclass(frozen=True)
class PromptReader:
    """Checks and completes the prompts for one model: its number of text encoders and the widths of their outputs.

    vocabulary: every word that the model was trained on; empty where the list is unknown.
    """

    encoders: int
    context_width: int
    pooled_width: int | None
    max_length: int  # of a prompt, in tokens
    vocabulary: str

    def read(
        self, prompt: PromptArguments, negative: PromptArguments, per_prompt: int
    ) -> tuple[PromptBatch, PromptBatch]:
        """The prompts and the negative prompts, with `per_prompt` images for each prompt. Raises InputError."""
        for arguments in (prompt, negative):
            self._check(arguments)
        embeds = prompt.prompt_embeds
        texts = validation.prompts(prompt.prompt) if embeds is None else [""] * len(embeds)
        return (
            self._batch(prompt, texts, len(texts), per_prompt),
            self._batch(negative, negative.prompt, len(texts), per_prompt),
        )

    def check_lengths(self, prompt: PromptBatch, negative: PromptBatch) -> None:
        """Check that the text states of both batches have one length, as guidance needs. Raises InputError."""
        lengths = [self.max_length if batch.embeds is None else batch.embeds.shape[1] for batch in (prompt, negative)]
        if lengths[0] != lengths[1]:
            raise InputError(
                f"the text states of the prompt are {lengths[0]} long, those of the negative prompt {lengths[1]}, "
                "expected one length; give both as embeds, or neither."
            )

    def unknown_words(self, *batches: PromptBatch) -> str | None:
        """A notice of the words outside the model's vocabulary, with similar words in it; None where there are none."""
        texts = [text for batch in batches for text in (*batch.texts, *batch.texts_2)]
        unknown = validation.unknown_words(texts, self.vocabulary)
        if not unknown:
            return None
        known = self.vocabulary.split()
        close = (get_close_matches(word, known, n=1, cutoff=0.8) for word in unknown[:LISTED])
        similar = dict.fromkeys(near for some in close for near in some)
        advice = f"similar words that it knows: {listed([*similar])}; " if similar else ""
        return (
            f"this model was not trained on the words {listed(unknown)}, so the image may not show them; {advice}"
            f"`minisd inspect` and sd.defaults.words list all {len(known)}."
        )

    def _check(self, given: PromptArguments) -> None:
        """Check each argument, and that no two arguments contradict each other."""
        embeds, pooled = given.prompt_embeds, given.pooled_prompt_embeds
        name, pooled_name = given.name("prompt_embeds"), given.name("pooled_prompt_embeds")
        if given.prompt_2 is not None and self.encoders == 1:
            raise InputError(f"{given.name('prompt_2')} is for SDXL's second text encoder; this model has one.")
        if pooled is not None and self.pooled_width is None:
            raise InputError(f"{pooled_name} is for SDXL; this model does not support it. Remove the argument.")
        if embeds is not None:
            validation.text_states(embeds, name, self.context_width)
            for argument, text in (("prompt", given.prompt), ("prompt_2", given.prompt_2)):
                if text is not None and text != "":
                    raise InputError(f"{given.name(argument)} and {name} were both given; give one of them.")
        if (embeds is None) != (pooled is None) and self.pooled_width is not None:
            one, other = (name, pooled_name) if pooled is None else (pooled_name, name)
            raise InputError(
                f"{one} was given without {other}; SDXL needs both: see sd.encode_prompt and sd.encode_pooled."
            )
        if pooled is not None and embeds is not None:
            fits = isinstance(pooled, Tensor) and tuple(pooled.shape) == (len(embeds), self.pooled_width)
            if not fits or not pooled.is_floating_point() or not torch.isfinite(pooled).all():
                shape = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
                raise InputError(
                    f"{pooled_name} is {shape}, expected finite pooled text ({len(embeds)}, {self.pooled_width}), "
                    "as encode_pooled returns."
                )

    def _batch(self, given: PromptArguments, prompt: Texts | None, count: int, per_prompt: int) -> PromptBatch:
        texts = _rows(prompt, given.name("prompt"), count, per_prompt)
        texts_2 = texts if given.prompt_2 is None else _rows(given.prompt_2, given.name("prompt_2"), count, per_prompt)
        embeds, pooled = (
            validation.broadcast_rows(values, given.name(argument), "text states", count * per_prompt, per_prompt)
            for argument, values in (
                ("prompt_embeds", given.prompt_embeds),
                ("pooled_prompt_embeds", given.pooled_prompt_embeds),
            )
        )
        return PromptBatch(texts, texts_2, embeds, pooled)


def texts_for(encoders: int, prompts: Texts, prompts_2: Texts | None) -> list[list[str]]:
    """The texts for each of one or two text encoders; the second one has its own, or those of the first."""
    texts = [validation.prompts(prompts, "prompts")]
    if encoders == 2:
        texts.append(texts[0] if prompts_2 is None else validation.prompts(prompts_2, "prompts_2"))
    elif prompts_2 is not None:
        raise InputError("prompts_2 is for SDXL's second text encoder; this model has one.")
    if len(texts[0]) != len(texts[-1]):
        raise InputError(f"prompts_2 holds {len(texts[-1])} texts for {len(texts[0])} prompts; give as many.")
    return texts


def _rows(value: Texts | None, name: str, count: int, per_prompt: int) -> list[str]:
    """One text for each image; a single text is for all of them."""
    texts = validation.prompts(value, name)
    if isinstance(value, str):
        texts = texts * count
    if len(texts) != count:
        raise InputError(f"{name} holds {len(texts)} texts for {count} prompts; give as many.")
    return [text for text in texts for _ in range(per_prompt)]
