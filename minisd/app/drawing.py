"""An image that appears step by step, then the heat map of each word over it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from html import escape
from typing import Any, NamedTuple

import torch
from PIL import Image

from minisd import images
from minisd.app.outputs import data_address, figure, links_html, notes_html
from minisd.app.runs import Stopped
from minisd.demos.inputs import moments, steps_of, words_of
from minisd.errors import InputError
from minisd.interpret.attention_maps import AttentionMaps, overlay, record_attention
from minisd.pipeline import DenoisingStep, StableDiffusion

SHOWN = 8  # steps whose images are decoded
PREVIEWS = "The images of all steps but the last are previews: a small decoder draws them, approximately."
RECORDED = 10  # steps whose attention is kept: the maps of an official model need memory
SOURCE, LESSON = ("minisd/pipeline/denoising.py", "minisd/interpret/attention_maps.py"), "15"

Alone = Callable[[], AbstractContextManager[None]]  # keeps other runs away; raises Stopped and gr.Error


class Frame(NamedTuple):
    """A step with its images: x_t, and x0, the image that the UNet expects at this step."""

    step: DenoisingStep
    noisy: Image.Image
    clean: Image.Image


class Drawing:
    """A run of the pipeline whose hooks are in place only during a step.

    A visitor may leave between two steps, and the next visitor finds the networks as they were.
    """

    def __init__(self, sd: StableDiffusion, alone: Alone) -> None:
        self.sd, self.alone = sd, alone
        self.frames: list[Frame] = []
        self.maps: AttentionMaps | None = None
        self.calls, self.stopped = 0, False

    def steps(self, prompt: str, num_inference_steps: int | None, **settings: Any) -> Iterator[DenoisingStep]:
        """Run, and keep frames and maps. settings: of sd.denoise. Raises gr.Error for what the library refuses."""
        try:
            with self.alone():
                steps = steps_of(self.sd, num_inference_steps)
                self.calls = len(self.sd.scheduler.grid(steps).timesteps)
                run = self.sd.denoise(prompt, num_inference_steps=steps, **settings)
            shown, recorded = moments(self.calls, SHOWN), moments(self.calls, RECORDED)
            for i in range(self.calls):
                with self.alone():
                    step = self._recorded_step(run) if i in recorded else next(run)
                    if i in shown:
                        self._decode(step)
                yield step
        except Stopped:
            self.stopped = True

    def heat_maps(self, prompt: str) -> dict[str, Image.Image]:
        """For each word of the prompt, the last image under the heat map of the word."""
        found = {}
        if self.maps is not None and self.frames:
            for word in words_of(prompt):
                with suppress(InputError):  # what is no word for the tokenizer, and words that were dropped
                    found[word] = overlay(self.frames[-1].clean, self.maps.heat_map(word, prompt))
        return found

    def _recorded_step(self, run: Iterator[DenoisingStep]) -> DenoisingStep:
        with record_attention(self.sd) as maps:
            step = next(run)
        if self.maps is not None:
            maps.maps[:0] = self.maps.maps
        self.maps = maps
        return step

    def _decode(self, step: DenoisingStep) -> None:
        is_last = step.i == self.calls - 1
        decode = self.sd.decode if is_last or self.sd.preview_decoder is None else self.sd.preview
        noisy, clean = images.to_pil(decode(torch.cat([step.latents[:1], step.x0[:1]])))
        self.frames.append(Frame(step, noisy, clean))


def draw(sd: StableDiffusion, alone: Alone, notes: list[str], prompt: str, **settings: Any) -> Iterator[str]:
    """The HTML of the page after each step, then with the heat maps.

    notes: warnings of the run, which `alone` collects. settings: of sd.denoise. Raises gr.Error for what the library
    refuses.
    """
    drawing = Drawing(sd, alone)
    for step in drawing.steps(prompt, **settings):
        yield _progress(drawing, step)
    yield _result(drawing, prompt, notes)


def _progress(drawing: Drawing, step: DenoisingStep) -> str:
    status = f"Step {step.i + 1} of {drawing.calls}, t = {float(step.t):.0f}"
    bar = f'<progress max="{drawing.calls}" value="{step.i + 1}" aria-label="steps that are done"></progress>'
    frame = drawing.frames[-1]
    at = f"at step {frame.step.i + 1}"
    now = figure(frame.clean, f"the expected image {at}", f"x0, the expected image, {at}", "picture")
    now += figure(frame.noisy, f"the noisy image {at}", f"x_t, still with noise, {at}", "picture")
    return f'<article class="demo"><p role="status">{status}</p>{bar}<div class="row">{now}</div></article>'


def _result(drawing: Drawing, prompt: str, notes: list[str]) -> str:
    done = drawing.frames[-1].step.i + 1 if drawing.frames else 0
    status = f"Drawn in {done} steps."
    if drawing.stopped:
        status = f"Stopped: the image of step {done} of {drawing.calls}." if done else "Stopped before the first step."
    title = f"<h2>The image for {escape(repr(prompt))}</h2>"
    parts = [title, f'<p role="status">{status}</p>', notes_html(notes)]
    if drawing.frames:
        parts += [_words(drawing, prompt), _film(drawing.frames)]
        parts += [] if drawing.sd.preview_decoder is None else [f"<p>{PREVIEWS}</p>"]
    return f'<article class="demo">{"".join(parts)}{links_html(SOURCE, LESSON)}</article>'


def _words(drawing: Drawing, prompt: str) -> str:
    """The image, and a choice for each word; page.css lays the heat map of the chosen word over the image."""
    last = drawing.frames[-1].clean
    choices = ['<label class="word"><input type="radio" name="word" checked><span>the image alone</span></label>']
    for word, shown in drawing.heat_maps(prompt).items():
        heat = f'<img src="{data_address(shown)}" alt=": where the image looks at this word">'
        choices.append(f'<label class="word"><input type="radio" name="word"><span>{escape(word)}</span>{heat}</label>')
    picture = f'<img class="last" src="{data_address(last)}" alt="the image for {escape(repr(prompt))}">'
    legend = "<legend>Point at a word, or choose one: where does the image look at it?</legend>"
    return (
        f'<div class="seen">{picture}<fieldset>{legend}<div class="choices">{"".join(choices)}</div></fieldset></div>'
    )


def _film(frames: list[Frame]) -> str:
    rows = ""
    for title, name, what in (("x_t: noise until late", "noisy", "x_t"), ("x0: what is expected", "clean", "x0")):
        panels = "".join(
            figure(getattr(frame, name), f"{what} at step {frame.step.i + 1}", f"step {frame.step.i + 1}", "small")
            for frame in frames
        )
        rows += f'<section><h3>{title}</h3><div class="row">{panels}</div></section>'
    return rows
