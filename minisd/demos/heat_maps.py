"""Word heat maps: where the image looks at a word, at each step and each level of the UNet."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from minisd import images
from minisd._internal import validation
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import fitted, heat_map
from minisd.demos.inputs import PROMPT, check_task, moments, steps_of, words_of
from minisd.errors import InputError
from minisd.interpret.attention_maps import AttentionMaps, overlay, record_attention
from minisd.interpret.text_vectors import token_span
from minisd.pipeline import StableDiffusion

SHOWN = 6  # steps
MOST_WORDS = 7


def show(
    sd: StableDiffusion,
    prompt: str = PROMPT,
    word: str | None = None,
    seed: int = 3,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """The heat map of every word of the prompt, and that of one word at each step and level.

    word: the one, by default that whose map varies most. Raises InputError, also for a word that is not in
    the prompt.
    """
    check_task(sd, "text")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    if word is not None:
        token_span(sd.tokenizer, prompt, validation.text(word, "word"))
    given: dict[str, Any] = {"seed": seed, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    with record_attention(sd) as maps:
        pixels = sd(prompt, output_type="pt", **given).images
    heat: dict[str, Tensor] = {}
    for each in words_of(prompt):
        with suppress(InputError):  # what is no word for the tokenizer
            heat[each] = maps.heat_map(each, prompt)
    if not heat:
        raise InputError(f"prompt is {prompt!r}, expected at least one word.")
    peaks = {each: float(values.max() / values.mean()) for each, values in heat.items()}
    contrasts = {each: float(values.max() - values.mean()) for each, values in heat.items()}
    chosen = max(contrasts, key=contrasts.__getitem__) if word is None else word
    names = sorted(contrasts, key=contrasts.__getitem__, reverse=True)[:MOST_WORDS]
    names = [each for each in heat if each in names]
    shown = maps.heat_map(chosen, prompt)
    picture = fitted(images.to_pil(pixels)[0])
    high = max(float(heat[each].max()) for each in names)
    last = len({each.step for each in maps.maps})
    by_step = {f"step {k}": maps.heat_map(chosen, prompt, step=k) for k in moments(last, SHOWN)}
    by_level = {
        f"{part}, level {level}: {h} x {w} places": maps.heat_map(chosen, prompt, level=level, part=part)
        for (part, level), (h, w) in _layers(maps).items()
    }
    start = float(maps.heat_map(sd.tokenizer.bos, prompt).mean())
    all_words = sum(float(values.mean()) for values in heat.values())
    return Demo(
        "Word heat maps: where the image looks at a word",
        (
            f"In each cross-attention layer every place spreads a weight of 1 over the tokens: {100 * start:.0f} % go "
            f"to the start token, {100 * all_words:.0f} % to the first occurrences of the words.",
            f"{chosen!r} is hottest at {_place(shown)}; its peak is "
            f"{float(shown.max() / shown.mean()):.1f} times its mean.",
            "A map shows where a layer looks, not what it makes of it; the embedded model was trained to look at the "
            "object that a noun names.",
        ),
        (
            row_of(
                "The image, and the map of each word over it, each on its own scale",
                [Panel("the image", picture, f"the image for {prompt!r}")]
                + [Panel(each, overlay(picture, heat[each]), f"where the image looks at {each!r}") for each in names],
            ),
            row_of(
                f"The same maps on one scale, 0 to {100 * high:.1f} % of the attention",
                [
                    Panel(
                        f"{each}: {100 * float(heat[each].mean()):.1f} % on average",
                        heat_map(heat[each], high),
                        f"the attention to {each!r}, hottest at {_place(heat[each])}",
                    )
                    for each in names
                ],
            ),
            row_of(f"{chosen!r} at each step, on one scale", _on_one_scale(by_step, chosen)),
            row_of(f"{chosen!r} at each level of the UNet, on one scale", _on_one_scale(by_level, chosen)),
        ),
        Table(
            ("word", "share of the attention (%)", "peak / mean", "hottest at"),
            tuple((each, 100 * float(heat[each].mean()), peaks[each], _place(heat[each])) for each in heat),
        ),
        ("minisd/interpret/attention_maps.py",),
        "21",
    )


def _on_one_scale(values: dict[str, Tensor], word: str) -> list[Panel]:
    high = float(torch.stack(list(values.values())).max())
    return [Panel(name, heat_map(each, high), f"the attention to {word!r}, {name}") for name, each in values.items()]


def _layers(maps: AttentionMaps) -> dict[tuple[str, int], tuple[int, int]]:
    """Part and level of the cross-attention layers, in the order in which they run, with height and width."""
    return {(each.part, each.level): (each.weights.shape[1], each.weights.shape[2]) for each in maps.maps}


def _place(values: Tensor) -> str:
    """Where a map (h, w) is highest, in percent of its width and height."""
    row, column = divmod(int(values.argmax()), values.shape[1])
    across, down = (column + 0.5) / values.shape[1], (row + 0.5) / values.shape[0]
    return f"{100 * across:.0f} % right, {100 * down:.0f} % down"
