"""What a demo shows, as HTML: every image with its alternative text and caption, tables with headings, links."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from minisd.app.sources import lesson_address, source_address
from minisd.demos.demo import Demo, Row, Table, shown_cell


def demo_html(demo: Demo, notes: Sequence[str] = ()) -> str:
    """The title, the sentences, the rows of images, the table, and the links. notes: warnings of the run."""
    parts = [f"<h2>{escape(demo.title)}</h2>"]
    parts += [f"<p>{escape(sentence)}</p>" for sentence in demo.text]
    parts += [notes_html(notes), *map(_row, demo.rows)]
    parts += ["" if demo.table is None else _table(demo.table, demo.title)]
    return f'<article class="demo">{"".join(parts)}{links_html(demo.source, demo.notebook)}</article>'


def notes_html(notes: Sequence[str]) -> str:
    """Warnings, each a paragraph."""
    return "".join(f'<p class="note">Note: {escape(note)}</p>' for note in notes)


def links_html(source: Sequence[str], notebook: str = "") -> str:
    """Links to the files that implement a component, and to its lesson."""
    parts = [f"Source: {', '.join(_link(path, source_address(path)) for path in source)}."] if source else []
    if notebook:
        parts.append(f"Explained in {_link(f'lesson {notebook}', lesson_address(notebook))}.")
    return f'<p class="links">{" ".join(parts)}</p>' if parts else ""


def figure(image: Image.Image, alt: str, caption: str, kind: str = "panel") -> str:
    """An image with its caption; kind: the class of the element, which decides its size on the page."""
    picture = f'<img src="{data_address(image)}" alt="{escape(alt)}" width="{image.width}" height="{image.height}">'
    return f'<figure class="{kind}">{picture}<figcaption>{escape(caption)}</figcaption></figure>'


def data_address(image: Image.Image) -> str:
    """An image as the address that holds it: the page needs no file of the server."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _link(text: str, address: str | None) -> str:
    shown = escape(text)
    return shown if address is None else f'<a href="{escape(address)}" target="_blank">{shown}</a>'


def _row(row: Row) -> str:
    panels = "".join(figure(panel.image, panel.alt, panel.caption) for panel in row.panels)
    return f'<section><h3>{escape(row.title)}</h3><div class="row">{panels}</div></section>'


def _table(table: Table, title: str) -> str:
    """A table in a box that scrolls, also with the keyboard, where the screen is narrow."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(shown_cell(cell))}</td>' for cell in row)}</tr>" for row in table.rows)
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="numbers of {escape(title)}">'
    return f"{box}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
