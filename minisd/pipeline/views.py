"""Views: parts or turned copies of one image, each with a prompt of its own.

The UNet predicts every view, and the loop averages the predictions in the image's own frame. Overlapping windows make
an image larger than the model (MultiDiffusion, Bar-Tal et al. 2023); a turned copy makes an image that shows something
else when it is turned (visual anagrams, Geng et al. 2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minisd._internal import validation
from minisd._internal.messages import shown
from minisd.errors import InputError


class _Turn(NamedTuple):
    """A turn of (..., h, w), and the turn back."""

    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


TURNS: dict[str, _Turn] = {
    "none": _Turn(lambda x: x, lambda x: x),
    "half": _Turn(lambda x: x.rot90(2, (-2, -1)), lambda x: x.rot90(2, (-2, -1))),
    "quarter": _Turn(lambda x: x.rot90(-1, (-2, -1)), lambda x: x.rot90(1, (-2, -1))),  # clockwise
    "mirror": _Turn(lambda x: x.flip(-1), lambda x: x.flip(-1)),
    "flip": _Turn(lambda x: x.flip(-2), lambda x: x.flip(-2)),
}

Window = tuple[slice, slice, str]  # rows and columns in latent cells, and the turn


@dataclass(frozen=True)
class View:
    """What a part of the image shows, or a turned copy of it.

    left, top, width, height: the part, in pixels; by default all that is to the right and below. turn: how the part is
    turned before the model sees it: "none", "half", "quarter" (clockwise), "mirror" (left and right exchanged) or
    "flip" (top and bottom exchanged). Raises InputError.
    """

    prompt: str
    left: int = 0
    top: int = 0
    width: int | None = None
    height: int | None = None
    turn: str = "none"

    def __post_init__(self) -> None:
        validation.text(self.prompt, "the prompt of a view")
        for name, low in (("left", 0), ("top", 0), ("width", 1), ("height", 1)):
            value = getattr(self, name)
            if value is not None or low == 0:
                value = validation.whole_number(value, f"{name} of a view", low, 1_000_000)
                object.__setattr__(self, name, value)
        if not isinstance(self.turn, str) or self.turn not in TURNS:
            raise InputError(f"turn of a view is {shown(self.turn)}, expected one of {', '.join(TURNS)}.")


def view_grid(prompts: str | Sequence[str], columns: int, rows: int, size: int, overlap: float = 0.25) -> list[View]:
    """Square views of `size` pixels in columns and rows, row by row; neighbours share `overlap` of their size.

    prompts: one for all views, or one for each. Raises InputError.
    """
    columns, rows = (
        validation.whole_number(value, name, 1, 1000) for value, name in ((columns, "columns"), (rows, "rows"))
    )
    size = validation.whole_number(size, "size", 1, 100_000)
    step = size - round(size * validation.real_number(overlap, "overlap", 0, 0.9))
    texts = validation.prompts(prompts)
    texts = texts * (columns * rows) if isinstance(prompts, str) else texts
    if len(texts) != columns * rows:
        raise InputError(f"there are {len(texts)} prompts for {columns} x {rows} views; give one, or one for each.")
    places = [(column * step, row * step) for row in range(rows) for column in range(columns)]
    return [View(text, left, top, size, size) for text, (left, top) in zip(texts, places, strict=True)]


@dataclass(frozen=True)
class Views:
    """The views of a request, in latent cells: V windows (rows, columns, turn) of one size in a canvas (H, W)."""

    windows: tuple[Window, ...]
    canvas: tuple[int, int]

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of each view as the UNet sees it."""
        rows, columns, _ = self.windows[0]
        return rows.stop - rows.start, columns.stop - columns.start

    def look(self, x: Tensor) -> Tensor:
        """The views of x (B, C, H, W): (V B, C, h, w), all images of the first view first."""
        return torch.cat([TURNS[turn].there(x[..., rows, columns]) for rows, columns, turn in self.windows])

    def average(self, predictions: Tensor) -> Tensor:
        """The mean of the predictions (V B, C, h, w) at each cell of the canvas: (B, C, H, W)."""
        parts = predictions.chunk(len(self))
        total, count = parts[0].new_zeros(*parts[0].shape[:2], *self.canvas), parts[0].new_zeros(self.canvas)
        for part, (rows, columns, turn) in zip(parts, self.windows, strict=True):
            total[..., rows, columns] += TURNS[turn].back(part)
            count[rows, columns] += 1
        return total / count


def whole(canvas: tuple[int, int]) -> Views:
    """The image as its only view."""
    return Views(((slice(0, canvas[0]), slice(0, canvas[1]), "none"),), canvas)


def canvas_of(views: Sequence[View], least: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of the smallest image with these views, at least `least`."""
    right = [view.left + view.width for view in views if view.width is not None]
    bottom = [view.top + view.height for view in views if view.height is not None]
    open_sides = any(view.width is None for view in views), any(view.height is None for view in views)
    width, height = max(right, default=0), max(bottom, default=0)
    return max(height, least[0] if open_sides[1] else 0), max(width, least[1] if open_sides[0] else 0)


def check_views(value: Any) -> list[View]:
    """The argument `views` as a list; raises InputError unless it holds views."""
    views = list(value) if isinstance(value, list | tuple) else [value]
    if not views or not all(isinstance(view, View) for view in views):
        raise InputError(f"views is {shown(value)}, expected a list of View(prompt, ...).")
    return views


def place_views(views: Sequence[View], canvas: tuple[int, int], factor: int, smallest: int) -> Views:
    """The views in latent cells of `factor` pixels. Raises InputError where they do not fit the canvas (in cells).

    They must begin and end between cells, have one size of at least `smallest` cells, and cover the canvas.
    """
    windows: list[Window] = []
    for k, view in enumerate(views):
        ends = []
        for start, length, side, name in (
            (view.top, view.height, canvas[0], "height"),
            (view.left, view.width, canvas[1], "width"),
        ):
            stop = side * factor if length is None else start + length
            if start % factor or stop % factor:
                raise InputError(f"view {k} spans {start} to {stop} of the {name}, expected multiples of {factor}.")
            if stop > side * factor or stop - start < smallest * factor:
                raise InputError(
                    f"view {k} spans {start} to {stop} of the {name}, expected at least {smallest * factor} pixels "
                    f"within 0 to {side * factor}."
                )
            ends.append(slice(start // factor, stop // factor))
        rows, columns = ends
        windows.append((rows, columns, view.turn))
    sizes = {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns, _ in windows}
    if len(sizes) > 1:
        listed = ", ".join(f"{w * factor} x {h * factor}" for h, w in sorted(sizes))
        raise InputError(f"the views have the sizes {listed}, expected one size: they are one batch of the UNet.")
    h, w = sizes.pop()
    if h != w and any(turn == "quarter" for *_, turn in windows):
        raise InputError(f"a quarter turn needs square views, these are {w * factor} x {h * factor}.")
    if not _is_covered(windows, canvas):
        raise InputError(f"the views leave a part of the {canvas[1] * factor} x {canvas[0] * factor} image uncovered.")
    return Views(tuple(windows), canvas)


def _is_covered(windows: Sequence[Window], canvas: tuple[int, int]) -> bool:
    """Whether the windows cover the canvas; looked at between their edges, so that its size does not matter."""
    rows = sorted({0, canvas[0], *(end for each, _, _ in windows for end in (each.start, each.stop))})
    columns = sorted({0, canvas[1], *(end for _, each, _ in windows for end in (each.start, each.stop))})
    covered = torch.zeros(len(rows) - 1, len(columns) - 1, dtype=torch.bool)
    for high, wide, _ in windows:
        inside = slice(rows.index(high.start), rows.index(high.stop))
        covered[inside, columns.index(wide.start) : columns.index(wide.stop)] = True
    return bool(covered.all())
