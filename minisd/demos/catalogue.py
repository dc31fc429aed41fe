"""All demos, in the order of the pipeline: their names, what they show, and the model that they begin with."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from minisd.demos import (
    adapters,
    callback,
    depth,
    guidance,
    heat_maps,
    image_to_image,
    inpainting,
    samplers,
    schedule,
    surgery,
    text,
    tokenizer,
    unet,
    vae,
    weights,
)
from minisd.demos.demo import Demo
from minisd.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A demo: `show(sd, **settings)` where it has a model, `show(model, **settings)` where it only reads its files.

    model: the name of the model that is loaded unless another is given.
    """

    name: str
    summary: str
    show: Callable[..., Demo]
    model: str = "sticker"
    loads: bool = True

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The settings by name, without the model, with their types and defaults."""
        _, *settings = inspect.signature(self.show).parameters.items()
        return dict(settings)


_ENTRIES = (
    Entry("tokenizer", "the pieces of a prompt in the slots of the text encoder", tokenizer.show),
    Entry("text", "what changes in the text transformer when one word changes", text.show),
    Entry("schedule", "signal and noise at each timestep, and an image under them", schedule.show),
    Entry("samplers", "six samplers from the same noise, side by side", samplers.show),
    Entry("vae", "the autoencoder's channels, how small they are, what is lost", vae.show),
    Entry("unet", "what skips, time and cross-attention contribute: switch one off", unet.show),
    Entry("guidance", "the two predictions, their difference, and several scales", guidance.show),
    Entry("callback", "the latents x_t beside x0, step by step, while an image is drawn", callback.show),
    Entry("heat-maps", "where the image looks at a word, at each step and level", heat_maps.show),
    Entry("image-to-image", "begin with an image under noise of several strengths", image_to_image.show),
    Entry("inpainting", "draw a part of an image again", inpainting.show, "sticker-inpainting"),
    Entry("depth", "a depth map says where, the prompt says what", depth.show, "sticker-depth"),
    Entry("surgery", "words swapped and mixed as vectors", surgery.show),
    Entry("adapters", "without and with a LoRA and a learned word", adapters.show),
    Entry("weights", "what a file or folder of weights is", weights.show, loads=False),
)
DEMOS: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> Entry:
    """The demo with this name. Raises InputError, which names the nearest ones."""
    if name in DEMOS:
        return DEMOS[name]
    near = difflib.get_close_matches(name, DEMOS, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`minisd demo` lists all."
    raise InputError(f"there is no demo {name!r}; {hint}")
