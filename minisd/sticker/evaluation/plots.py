"""What the figures have in common."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minisd._internal.atomic_files import write_atomically

Data = dict[str, Any]  # for JSON


def new_figure(columns: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of so many plots beside each other, under a title."""
    figure = Figure(figsize=(6.4 * columns, 4.8), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save_figure(figure: Figure, path: str | Path, overwrite: bool) -> Figure:
    """Write a PNG, and return the figure."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120), overwrite)
    return figure
