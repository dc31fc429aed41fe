"""One input of the page for each setting of a demo; what is left empty takes the demo's example."""

import base64
import binascii
import io
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from minisd import images
from minisd._internal.image_files import decode_image
from minisd.app.outputs import data_address
from minisd.cli.parser import real, whole
from minisd.demos.catalogue import Entry
from minisd.errors import InputError

LONGEST_PROMPT = 2000  # characters
LARGEST_MASK = 4_000_000  # characters of a drawn mask
MASK_SCRIPT = Path(__file__).with_name("mask.js")
MASK_HELP = (
    "Draw white where the image changes: with the pointer, or with arrow keys and the space bar; C clears. "
    "Nothing drawn: the file above, or the demo's own mask."
)
PNG = "data:image/png;base64,"


def _text(label: str, default: Any) -> gr.Component:
    return gr.Textbox(default or "", label=label, max_length=LONGEST_PROMPT)


def _number(label: str, default: Any) -> gr.Component:
    """A number; where the demo has no default, a text that may stay empty, which gr.Number may not."""
    if default is None:
        return gr.Textbox("", label=label, placeholder="the demo's own", max_length=40)
    return gr.Number(default, label=label, precision=0)


def _file(label: str, kinds: list[str], _: Any) -> gr.Component:
    return gr.File(label=label, type="filepath", file_types=kinds, height=150)


IMAGE, WEIGHTS = ["image"], [".safetensors", ".pt", ".bin", ".ckpt"]
INPUTS: dict[str, Callable[[Any], gr.Component]] = {  # setting: a function from its default to its input
    "prompt": partial(_text, "Prompt"),
    "negative_prompt": partial(_text, "Negative prompt"),
    "other": partial(_text, "Other: what to compare with"),
    "word": partial(_text, "Word of the prompt"),
    "seed": partial(_number, "Seed"),
    "num_inference_steps": partial(_number, "Steps (num_inference_steps)"),
    "guidance_scale": partial(_number, "Guidance (guidance_scale)"),
    "strength": partial(_number, "Strength, 0 to 1"),
    "image": partial(_file, "Image file (empty: a scene)", IMAGE),
    "mask_image": partial(_file, "Mask file (white is drawn again)", IMAGE),
    "depth_map": partial(_file, "Depth map (near is white)", IMAGE),
    "lora": partial(_file, "LoRA file", WEIGHTS),
    "embedding": partial(_file, "File of a learned word", WEIGHTS),
}


def inputs_of(entry: Entry) -> list[tuple[str, gr.Component]]:
    """The inputs of a demo with the names of their settings; without the prompt, which all demos share."""
    return [(name, INPUTS[name](each.default)) for name, each in entry.settings.items() if name != "prompt"]


def weights_file() -> gr.Component:
    """The file whose weights are described, instead of the model's."""
    return _file("Weight file (empty: the model)", WEIGHTS, None)


def mask_over(picture: Image.Image) -> gr.HTML:
    """A mask to be drawn over a picture with pointer or keys; mask.js is its other half."""
    return gr.HTML(
        value="",
        html_template=(
            f'<p id="mask-help">{MASK_HELP}</p><canvas width="{picture.width}" height="{picture.height}" '
            'tabindex="0" role="application" aria-label="Mask" aria-describedby="mask-help"></canvas>'
            '<button type="button" class="clear">Clear the mask</button>'
        ),
        js_on_load=MASK_SCRIPT.read_text(encoding="utf-8"),
        elem_classes=["mask"],
        picture=data_address(picture),
    )


def given(settings: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The settings that are not empty, numbers and images read; of two inputs for one setting the last one counts.

    Raises InputError for a text that is no number, and for a file that is no complete image.
    """
    chosen = {name: value for name, value in settings if value is not None and value != ""}
    return {name: read(value) if (read := READERS.get(name)) else value for name, value in chosen.items()}


def _mask(source: str) -> Image.Image:
    return _drawn_mask(source) if source.startswith("data:") else images.open_image(source)


def _drawn_mask(address: str) -> Image.Image:
    """The image of a data address, as mask.js makes it. Raises InputError."""
    if len(address) > LARGEST_MASK or not address.startswith(PNG):
        raise InputError("the drawn mask is no PNG image of the page, expected a mask from the canvas; draw it again.")
    try:
        raw = base64.b64decode(address.removeprefix(PNG), validate=True)
    except binascii.Error as error:
        raise InputError(f"the drawn mask is damaged ({error}), expected base64; draw it again.") from None
    return decode_image(io.BytesIO(raw), "the drawn mask")


READERS: dict[str, Callable[[Any], Any]] = {
    "num_inference_steps": whole,
    "guidance_scale": real,
    "strength": real,
    "image": images.open_image,
    "mask_image": _mask,
    "depth_map": images.open_image,
}
