"""Embedding surgery: words are swapped and mixed as vectors, before and after the text encoder."""

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import pictures
from minisd.demos.inputs import PROMPT, check_task, noise_of, steps_of
from minisd.errors import InputError
from minisd.interpret.text_vectors import encode_vectors, lerp, replace_word, slerp, word_vectors
from minisd.pipeline import StableDiffusion

WORD, OTHER = "circle", "star"
WEIGHTS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)


def show(
    sd: StableDiffusion,
    prompt: str = PROMPT,
    word: str = WORD,
    other: str = OTHER,
    seed: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """One word of the prompt turned into another in steps: as token vectors, and as text states of two prompts.

    The words need the same number of tokens. Raises InputError, also for a model with two text encoders.
    """
    check_task(sd, "text")
    if sd.is_xl:
        raise InputError("this demo needs a model with one text encoder; SDXL has another condition, choose SD 1 or 2.")
    for name, value in (("prompt", prompt), ("word", word), ("other", other)):
        validation.text(value, name)
    steps, noise = steps_of(sd, num_inference_steps), noise_of(sd, seed)
    written = re.sub(rf"\b{re.escape(word)}\b", lambda match: other, prompt, count=1, flags=re.IGNORECASE)
    draw = partial(_draw, sd, noise, num_inference_steps=steps, guidance_scale=guidance_scale)
    first, last = word_vectors(sd, word), word_vectors(sd, other)
    vectors = [replace_word(sd, prompt, word, lerp(first, last, weight)) for weight in WEIGHTS]
    mixed_words = encode_vectors(sd, torch.cat(vectors))
    swapped = encode_vectors(sd, replace_word(sd, prompt, word, last))
    ends = sd.encode_prompt([prompt]).float(), sd.encode_prompt([written]).float()
    mixed_states = torch.cat([slerp(*ends, weight) for weight in WEIGHTS])
    apart = float((swapped.float() - ends[1]).abs().max())
    captions = [f"{1 - weight:g} {word}, {weight:g} {other}" for weight in WEIGHTS]
    rows = [
        row_of(
            title,
            [
                Panel(caption, picture, f"the image for {caption}, mixed {when}")
                for caption, picture in zip(captions, pictures(draw(states)), strict=True)
            ],
        )
        for title, when, states in (
            (f"Token vectors mixed before the encoder: {word!r} to {other!r}", "before the encoder", mixed_words),
            (f"Text states mixed after the encoder: {prompt!r} to {written!r}", "after the encoder", mixed_states),
        )
    ]
    written_image, swapped_image = pictures(draw(torch.cat([ends[1], swapped.float()])))
    rows.append(
        row_of(
            f"The word exchanged: {other!r} written, and its vector in the place of {word!r}",
            [
                Panel("written", written_image, f"the image for {written!r}"),
                Panel("vector exchanged", swapped_image, f"the image for {prompt!r} with the vector of {other!r}"),
            ],
        )
    )
    distances = [
        tuple(float((states[None] - end).norm() / end.norm()) for end in ends) for states in mixed_words.float()
    ]
    return Demo(
        "Embedding surgery: words as vectors",
        (
            f"The vector of {other!r} in place of that of {word!r} gives the text states of {written!r} (largest "
            f"difference {apart:.1g}): after the embedding table nothing knows what the word was.",
            "Vectors between two words belong to no word; what the model makes of them it never learned.",
        ),
        tuple(rows),
        Table(
            ("weight", f"distance from {prompt!r}", f"from {written!r}"),
            tuple((weight, *pair) for weight, pair in zip(WEIGHTS, distances, strict=True)),
        ),
        ("minisd/interpret/text_vectors.py",),
        "19",
    )


def _draw(sd: StableDiffusion, noise: Tensor, states: Tensor, **given: Any) -> Tensor:
    """An image (B, 3, H, W) for each of the text states, all from one noise."""
    latents = noise.expand(len(states), -1, -1, -1)
    pixels: Tensor = sd(prompt_embeds=states, latents=latents, output_type="pt", **given).images
    return pixels
