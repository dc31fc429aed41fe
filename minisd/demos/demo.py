"""What a demo shows: sentences, rows of images and a table, for a terminal, a sheet or a web page."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Cell = str | int | float


@dataclass(frozen=True)
class Panel:
    """An image, ready to be shown: its caption, and an alternative text, a sentence that describes it."""

    caption: str
    image: Image.Image
    alt: str


@dataclass(frozen=True)
class Row:
    """Images that belong together, side by side; the title says what they have in common."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Table:
    """Numbers and names: the columns' titles, which state the units, and as many cells in each row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def column(self, title: str) -> list[Cell]:
        """The cells below a title."""
        return [row[self.columns.index(title)] for row in self.rows]

    def __str__(self) -> str:
        cells = [self.columns, *([shown_cell(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        is_text = [any(isinstance(row[k], str) for row in self.rows) for k in range(len(self.columns))]
        lines = []
        for row in cells:
            aligned = zip(row, widths, is_text, strict=True)
            lines.append("  ".join(f"{text:{'<' if left else '>'}{width}}" for text, width, left in aligned).rstrip())
        return "\n".join(lines)


@dataclass(frozen=True)
class Demo:
    """The result of a demo.

    text: sentences with the numbers that matter. source: the files that implement the component, relative to the
    repository. notebook: the number of the lesson that explains it.
    """

    title: str
    text: tuple[str, ...]
    rows: tuple[Row, ...]
    table: Table | None = None
    source: tuple[str, ...] = ()
    notebook: str = ""

    @property
    def panels(self) -> list[Panel]:
        """All images, row by row."""
        return [panel for row in self.rows for panel in row.panels]

    def __str__(self) -> str:
        parts = [self.title, "\n".join(self.text), "" if self.table is None else str(self.table)]
        where = [f"code: {', '.join(self.source)}"] if self.source else []
        where += [f"lesson: {self.notebook}"] if self.notebook else []
        return "\n\n".join(part for part in [*parts, "; ".join(where)] if part)


def row_of(title: str, panels: Sequence[Panel]) -> Row:
    """A row of any sequence of images."""
    return Row(title, tuple(panels))


def shown_cell(cell: Cell) -> str:
    """A cell as text: whole numbers with commas, other numbers with three digits after the point."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.1e}" if 0 < abs(cell) < 0.0005 else f"{cell:.3f}"
