"""Display helpers of the notebooks: figures with an alternative text, checked sentences, source code.

They compute nothing. They need IPython, which the `notebooks` extra installs.
"""

import base64
import inspect
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minisd.errors import InputError

# huggingface_hub imports tqdm.auto, which warns in Jupyter without ipywidgets: the notebooks show plain text bars
warnings.filterwarnings("ignore", message="IProgress not found")

TITLE = 11  # points
show_titles = True  # a student's notebook sets it to False: titles say what is seen
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # safe for colour blindness


def claim(sentence: str, holds: bool | Tensor) -> str:
    """Print a sentence that is true, and return it, for the title of a figure.

    Raises AssertionError if it is false: so prose, titles and code cannot disagree.
    """
    if not bool(holds):
        raise AssertionError(f"this claim is false: {sentence}")
    print("✓", sentence)
    return sentence


def axes(rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 3.0) -> tuple[Figure, Any]:
    """A figure and its axes (an array if there are several), in colours that all readers can distinguish."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns)
    for each in [panels] if rows * columns == 1 else panels.flat:
        each.set_prop_cycle(color=COLOURS)
        each.spines[["top", "right"]].set_visible(False)
    return figure, panels


def show(figure: Figure, alt: str, title: str = "") -> None:
    """Show a figure. alt: a sentence that describes the figure; title: the finding."""
    if title and show_titles:
        figure.suptitle(_wrapped(title, figure.get_figwidth()), fontsize=TITLE)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90, metadata={"Software": None})
    _display("image/png", file.getvalue(), alt)


def pictures(
    images: Sequence[Any],
    alt: str,
    title: str = "",
    labels: Sequence[str] = (),
    columns: int | None = None,
    rows: Sequence[str] = (),
    size: float = 1.15,
    cmap: str = "gray",
) -> None:
    """Show images in a grid: PIL images, or tensors and arrays (h, w), coloured by `cmap` on one common scale.

    labels: one for each image or one for each column; rows: one for each row, at the left; size: inches of an image.
    """
    columns = len(images) if columns is None else columns
    if labels and len(labels) not in (columns, len(images)):
        raise InputError(f"{len(labels)} labels were given, expected {columns} (columns) or {len(images)} (images).")
    count = math.ceil(len(images) / columns)
    width = columns * size + (0.9 if rows else 0)
    heading = len(_wrapped(title, width).split("\n")) if title else 0
    lines = heading + (count if len(labels) > columns else bool(labels))
    figure = Figure(figsize=(width, count * (size + 0.06) + 0.25 * lines), layout="constrained")
    flat = [torch.as_tensor(each) for each in images if not isinstance(each, Image.Image)]
    low, high = (min(float(x.min()) for x in flat), max(float(x.max()) for x in flat)) if flat else (0.0, 1.0)
    for k, panel in enumerate(figure.subplots(count, columns, squeeze=False).flat):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_color("#bbbbbb")
        if k >= len(images):
            panel.set_visible(False)
            continue
        image = images[k]
        if isinstance(image, Image.Image):
            panel.imshow(image, interpolation="antialiased")  # smooth where it is made smaller
        else:
            panel.imshow(torch.as_tensor(image).cpu(), cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        if k < len(labels):
            panel.set_title(labels[k], fontsize=9, pad=3)
        if rows and k % columns == 0:
            panel.set_ylabel(rows[k // columns], fontsize=9, rotation=0, ha="right", va="center")
    show(figure, alt, title)


def animation(frames: Sequence[Image.Image], alt: str, milliseconds: int = 150) -> None:
    """Show frames as a GIF that pauses at the last frame. A still strip near it should show the same."""
    file = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [10 * milliseconds]
    frames[0].save(file, "GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    _display("image/gif", file.getvalue(), alt)


def source(item: Callable[..., Any] | type) -> None:
    """Show the current source code of a function or class of the library."""
    from IPython.display import display

    text = inspect.getsource(item).rstrip()
    name = f"{item.__module__}.{item.__qualname__}"
    display({"text/markdown": f"`{name}`\n\n```python\n{text}\n```", "text/plain": f"# {name}\n{text}"}, raw=True)


def _wrapped(title: str, width: float) -> str:
    """A title, broken into lines that fit a figure of this width in inches."""
    return textwrap.fill(title, max(12, int(width * 72 / (0.5 * TITLE))))


def _display(kind: str, data: bytes, alt: str) -> None:
    from IPython.display import display

    if len(alt.split()) < 4:
        raise InputError(f"alt is {alt!r}, expected a sentence that describes the image.")
    encoded = base64.b64encode(data).decode()
    display({kind: encoded, "text/plain": f"[image: {alt}]"}, metadata={kind: {"alt": alt}}, raw=True)
