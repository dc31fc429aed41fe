"""Adapters: the same prompts and noise without and with a LoRA, and with a word that was learned."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import weights_loader
from minisd._internal import validation
from minisd.demos.demo import Cell, Demo, Panel, Row, Table, row_of
from minisd.demos.drawing import pictures
from minisd.demos.inputs import check_task, steps_of
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from weights_loader.sources import EMBEDDED

LORA, WORD = "night.safetensors", "candy.safetensors"  # of the embedded model
LORA_PROMPT = "a red square"
WORD_PROMPT = "a {} above a blue square"  # {}: the learned word; without it, PLAIN
PLAIN = "star"
SCALES = (0.0, 0.5, 1.0)
SEEDS = 2


class Part(NamedTuple):
    """What one adapter shows."""

    row: Row
    text: str
    cells: list[tuple[Cell, ...]]


def show(
    sd: StableDiffusion,
    prompt: str | None = None,
    lora: str | Path | None = None,
    embedding: str | Path | None = None,
    seed: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """A LoRA at several scales, and a learned word beside a plain one; the pipeline stays as it is.

    lora, embedding: files; without any, those of the embedded model. prompt: for both; {} in it is the place of the
    word. Raises InputError, also without a file for another model, and what reading files raises.
    """
    check_task(sd, "text")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    if lora is None and embedding is None:
        if sd.source != EMBEDDED:
            raise InputError("this model has no adapters of its own; give lora or embedding, a file for this model.")
        folder = weights_loader.resolve(EMBEDDED) / "adapters"
        lora, embedding = folder / LORA, folder / WORD
    own = _with_own_encoders(sd)
    given: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "num_images_per_prompt": SEEDS,
    }

    def draw(text: str) -> Tensor:
        pixels: Tensor = own(text, seed=seed, output_type="pt", **given).images.cpu()
        return pixels

    parts: list[Part] = []
    if lora is not None:
        text = LORA_PROMPT if prompt is None else prompt.replace("{}", PLAIN)
        parts.append(_show_lora(own, lora, text, seed, draw))
    if embedding is not None:
        text = WORD_PROMPT if prompt is None else prompt if "{}" in prompt else f"{prompt} {{}}"
        parts.append(_show_word(own, embedding, text, seed, draw))
    return Demo(
        "Adapters: small additions to a trained model",
        tuple(part.text for part in parts),
        tuple(part.row for part in parts),
        Table(("adapter", "scale", "mean change of a pixel (%)"), tuple(cell for part in parts for cell in part.cells)),
        ("minisd/adapters/lora.py", "minisd/adapters/textual_inversion.py"),
    )


def _show_lora(sd: StableDiffusion, path: str | Path, text: str, seed: int, draw: Callable[[str], Tensor]) -> Part:
    """A LoRA at each of SCALES; it is removed afterwards."""
    networks = [*(part.encoder for part in sd.text_parts), sd.unet]
    before = [(weight, weight.detach()) for network in networks for weight in network.parameters()]
    lora = weights_loader.load_lora(sd, path)
    try:
        sizes = [
            float((weight - old).detach().float().norm() / old.float().norm())
            for weight, old in before
            if weight.data_ptr() != old.data_ptr()  # merging gives a changed layer a new tensor
        ]
        images = []
        for scale in SCALES:
            lora.scale = scale
            images.append(draw(text))
    finally:
        lora.remove()
    titles = [f"scale {scale:g}" for scale in SCALES]
    return Part(
        row_of(f"{text!r} with the LoRA at several scales", _panels(titles, images, seed)),
        f"The LoRA {Path(path).name} changes {lora.layers} layers, by {100 * sum(sizes) / max(len(sizes), 1):.1f} % of "
        "the size of their weights on average; at scale 0 nothing changes.",
        [("LoRA", scale, _change(images[0], pixels)) for scale, pixels in zip(SCALES, images, strict=True)],
    )


def _show_word(sd: StableDiffusion, path: str | Path, text: str, seed: int, draw: Callable[[str], Tensor]) -> Part:
    """Images of a plain word and of each learned word in its place."""
    before = len(sd.tokenizer)
    learned = weights_loader.load_embedding(sd, path)
    added, width = len(sd.tokenizer) - before, sd.text_encoder.config.width
    texts = [text.replace("{}", word) for word in (PLAIN, *learned)]
    images = [draw(each) for each in texts]
    return Part(
        row_of(f"A plain word, and the learned word {', '.join(learned)}", _panels(texts, images, seed)),
        f"The learned word {', '.join(learned)} is {added} new row{'s' * (added != 1)} of {width} numbers in the "
        "embedding table; no other weight changes.",
        [(word, 1, _change(images[0], pixels)) for word, pixels in zip(learned, images[1:], strict=True)],
    )


def _with_own_encoders(sd: StableDiffusion) -> StableDiffusion:
    """The pipeline with copies of what a learned word changes: tokenizers and text encoders."""
    own = copy.copy(sd)
    own.tokenizer, own.text_encoder = copy.deepcopy(sd.tokenizer), copy.deepcopy(sd.text_encoder)
    if sd.tokenizer_2 is not None:
        own.tokenizer_2, own.text_encoder_2 = copy.deepcopy(sd.tokenizer_2), copy.deepcopy(sd.text_encoder_2)
    return own


def _panels(titles: Sequence[str], images: Sequence[Tensor], seed: int) -> list[Panel]:
    """The images (SEEDS, 3, H, W) of each title, one after the other."""
    return [
        Panel(f"{title}, seed {seed + k}", picture, f"the image for {title}")
        for title, pixels in zip(titles, images, strict=True)
        for k, picture in enumerate(pictures(pixels))
    ]


def _change(first: Tensor, second: Tensor) -> float:
    """The mean difference of two images' pixels, in percent of their range."""
    return 50 * float((first - second).abs().mean())
