"""What the notebooks show things with: figures that must have an alternative text, checked sentences, source code.

Nothing here computes anything; needs IPython, which comes with the `notebooks` extra.
"""

import base64
import inspect
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minisd.errors import InputError

TITLE = 11  # points
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by the colour-blind, too


def claim(sentence: str, holds: bool | Tensor) -> None:
    """Print a sentence that is true; AssertionError for one that is not: so prose cannot drift from the code."""
    if not bool(holds):
        raise AssertionError(f"this is not so: {sentence}")
    print("✓", sentence)


def axes(rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 3.0) -> tuple[Figure, Any]:
    """A figure and its axes (an array where there are several), in colours that all readers can tell apart."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    made = figure.subplots(rows, columns)
    for each in [made] if rows * columns == 1 else made.flat:
        each.set_prop_cycle(color=COLOURS)
        each.spines[["top", "right"]].set_visible(False)
    return figure, made


def show(figure: Figure, alt: str, title: str = "") -> None:
    """Show a figure. alt says in a sentence what is to be seen in it; title states the finding."""
    if title:
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
    """Pictures in a grid: PIL images, or tensors and arrays (h, w), which `cmap` colours, all on one scale.

    labels: one a picture, or one a column; rows: one a row, at the left; size: inches of each.
    """
    columns = len(images) if columns is None else columns
    if labels and len(labels) not in (columns, len(images)):
        raise InputError(f"there are {len(labels)} labels, expected {columns}, one a column, or {len(images)}.")
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
            panel.imshow(image, interpolation="nearest")
        else:
            panel.imshow(torch.as_tensor(image).cpu(), cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        if k < len(labels):
            panel.set_title(labels[k], fontsize=9, pad=3)
        if rows and k % columns == 0:
            panel.set_ylabel(rows[k // columns], fontsize=9, rotation=0, ha="right", va="center")
    show(figure, alt, title)


def animation(frames: Sequence[Image.Image], alt: str, milliseconds: int = 150) -> None:
    """Frames as a GIF, the last one held for a while; a still strip should say the same beside it."""
    file = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [10 * milliseconds]
    frames[0].save(file, "GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    _display("image/gif", file.getvalue(), alt)


def source(thing: Callable[..., Any] | type) -> None:
    """The library's code of a function or class, as it is now."""
    from IPython.display import display

    text = inspect.getsource(thing).rstrip()
    name = f"{thing.__module__}.{thing.__qualname__}"
    display({"text/markdown": f"`{name}`\n\n```python\n{text}\n```", "text/plain": f"# {name}\n{text}"}, raw=True)


def _wrapped(title: str, width: float) -> str:
    """A title in lines that fit into a figure of so many inches."""
    return textwrap.fill(title, max(12, int(width * 72 / (0.5 * TITLE))))


def _display(kind: str, data: bytes, alt: str) -> None:
    from IPython.display import display

    if len(alt.split()) < 4:
        raise InputError(f"the alternative text is {alt!r}, expected a sentence on what is to be seen.")
    coded = base64.b64encode(data).decode()
    display({kind: coded, "text/plain": f"[picture: {alt}]"}, metadata={kind: {"alt": alt}}, raw=True)
