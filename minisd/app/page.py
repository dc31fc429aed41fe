"""The page: the prompt, which all tabs share, and a tab for drawing and for each demo."""

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from minisd import images
from minisd.app.drawing import draw
from minisd.app.inputs import LONGEST_PROMPT, given, inputs_of, mask_over, weights_file
from minisd.app.models import Models
from minisd.app.outputs import data_address, demo_html, links_html
from minisd.app.runs import Runs, Stopped
from minisd.demos import DEMOS
from minisd.demos.catalogue import Entry
from minisd.demos.inputs import PROMPT, pixels_of
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from weights_loader.sources import EMBEDDED

CSS = Path(__file__).with_name("page.css")
EXAMPLES = (PROMPT, "a green star", "two yellow hearts", "a large purple square below a small orange circle")
LARGEST_SEED = 100_000  # of those that are drawn for the visitor
MOST_WAITING = 100  # runs in the queue
STOPPED = '<article class="demo"><p role="status">Stopped.</p></article>'
WITHOUT_API: dict[str, Any] = {"api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **WITHOUT_API}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "show_progress": "minimal", **WITHOUT_API}  # in all tabs


def theme() -> gr.themes.Base:
    """Colours of enough contrast, and the letters of the visitor's system: none are fetched."""
    letters = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    subdued = ("body_text_color_subdued", "block_info_text_color", "block_title_text_color", "block_label_text_color")
    ink = dict.fromkeys((*subdued, "input_placeholder_color"), "#4b5563")
    stop = dict.fromkeys(("button_cancel_background_fill", "button_cancel_background_fill_dark"), "#b91c1c")
    hover = dict.fromkeys(
        ("button_primary_background_fill_hover", "button_primary_background_fill_hover_dark"), "#1d4ed8"
    )
    light = {f"{name}_dark": "#d1d5db" for name in ink}
    return gr.themes.Default(primary_hue="blue", neutral_hue="gray", **letters).set(**ink, **light, **stop, **hover)


def build(models: Models) -> gr.Blocks:
    """The page, whose tabs use these models."""
    runs = Runs()
    with gr.Blocks(title="minisd", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            "<h1>minisd: Stable Diffusion, part by part</h1>"
            "<p>Write a prompt, choose a part of the model, change its settings, and see what it does.</p>"
        )
        prompt = gr.Textbox(
            PROMPT, label="Prompt for all tabs", info="Empty: each demo's example.", max_length=LONGEST_PROMPT
        )
        with gr.Row():
            for example in EXAMPLES:
                _example_button(example, example, prompt)
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                _drawing_tab(models, runs, prompt, tabs)
            for entry in DEMOS.values():
                with gr.Tab(_title(entry), id=entry.name):
                    _demo_tab(models, runs, prompt, entry)
        page.unload(runs.leave)
    page.queue(default_concurrency_limit=1, max_size=MOST_WAITING)
    return page


def _drawing_tab(models: Models, runs: Runs, prompt: gr.Textbox, tabs: gr.Tabs) -> None:
    name = models.name_for(EMBEDDED)
    sd = models.load(name)
    gr.HTML(f"<p>Noise becomes an image, step by step. Model: {escape(name)}.</p>")
    with gr.Row():
        seed = gr.Number(1, label="Seed", precision=0)
        steps = gr.Slider(1, 100, sd.defaults.num_inference_steps, step=1, label="Steps")
        guidance = gr.Slider(0, 15, sd.defaults.guidance_scale, step=0.5, label="Guidance")
        negative = gr.Textbox("", label="Negative prompt", max_length=LONGEST_PROMPT)
    with gr.Row():
        button = gr.Button("Draw", variant="primary")
        another = gr.Button("Draw with another seed")
        stop = gr.Button("Stop", variant="stop")
    output = gr.HTML(elem_classes=["output"])

    def run(
        request: gr.Request, prompt: str, negative: str, seed: int | None, steps: int, guidance: float
    ) -> Iterator[str]:
        notes: list[str] = []
        alone = partial(runs.alone, sd, request.session_hash, notes)
        yield from draw(
            sd, alone, notes, prompt, negative_prompt=negative, seed=seed, num_inference_steps=steps,
            guidance_scale=guidance,
        )  # fmt: skip

    inputs = [prompt, negative, seed, steps, guidance]
    new_seed = another.click(None, None, seed, js=f"() => Math.floor({LARGEST_SEED} * Math.random())", **WITHOUT_API)
    prompt.submit(lambda: gr.Tabs(selected="draw"), None, tabs, **AT_ONCE)
    for begun in (gr.on([button.click, prompt.submit], runs.begin, **AT_ONCE), new_seed.then(runs.begin, **AT_ONCE)):
        begun.then(run, inputs, output, **ONE_AT_A_TIME)
    stop.click(runs.stop, **AT_ONCE)


def _demo_tab(models: Models, runs: Runs, prompt: gr.Textbox, entry: Entry) -> None:
    name = models.name_of(entry)
    links = links_html([entry.show.__module__.replace(".", "/") + ".py"])
    summary = entry.summary[0].upper() + entry.summary[1:]
    gr.HTML(f'<div class="demo"><p>{escape(summary)}. Model: {escape(name)}.</p>{links}</div>')
    settings = entry.settings
    if "prompt" in settings and (example := settings["prompt"].default or "") != PROMPT:
        _example_button(f"Example: {example or 'prompts that fit, where the prompt is empty'}", example, prompt)
    with gr.Row():
        inputs = inputs_of(entry)
        if not entry.loads:
            inputs.append(("source", weights_file()))
    if "mask_image" in settings:
        inputs.append(("mask_image", _mask(models.load(name), dict(inputs)["image"])))
    with gr.Row():
        button = gr.Button("Show", variant="primary")
        stop = gr.Button("Stop", variant="stop")
    output = gr.HTML(elem_classes=["output"])
    if "prompt" in settings:
        inputs.append(("prompt", prompt))

    def run(request: gr.Request, *values: Any) -> str:
        notes: list[str] = []
        sd = models.load(name) if entry.loads else None
        try:
            with runs.alone(sd, request.session_hash, notes):
                chosen = given((setting, value) for (setting, _), value in zip(inputs, values, strict=True))
                shown = entry.show(chosen.pop("source", name) if sd is None else sd, **chosen)
        except Stopped:
            return STOPPED
        return demo_html(shown, notes)

    begun = button.click(runs.begin, **AT_ONCE)
    begun.then(run, [each for _, each in inputs], output, **ONE_AT_A_TIME)
    stop.click(runs.stop, **AT_ONCE)


def _mask(sd: StableDiffusion, image: gr.Component) -> gr.HTML:
    """A mask to draw over the image of another input, or over the scene that the demo takes instead."""

    def below(path: str | None = None) -> Image.Image:
        return images.to_pil(pixels_of(sd, images.open_image(path) if path else None))[0]

    def follow(path: str | None) -> Any:
        with suppress(InputError):  # the demo itself says what is wrong with the file
            return gr.HTML(picture=data_address(below(path)))
        return gr.skip()

    mask = mask_over(below())
    image.change(follow, image, mask, **AT_ONCE)
    return mask


def _title(entry: Entry) -> str:
    return {"vae": "VAE", "unet": "UNet"}.get(entry.name, entry.name.capitalize().replace("-", " "))


def _example_button(title: str, text: str, prompt: gr.Textbox) -> None:
    gr.Button(title, size="sm").click(None, None, prompt, js=f"() => {json.dumps(text)}", **WITHOUT_API)
