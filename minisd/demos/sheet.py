"""All images of a demo on one sheet, in rows, with their titles and captions."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from minisd.demos.demo import Demo, Panel, Row
from minisd.demos.drawing import INK, PAPER, font, text_width

MARGIN, GAP = 20, 12  # pixels
TITLE, HEADING, CAPTION, NOTE = 22, 15, 13, 13  # of the letters, in pixels
SPACING = 4  # between lines
WIDEST = 1200  # of the images of a row, before they continue in the next line
NOTE_INK, EDGE = "#4a4a4a", "#d6d6d6"
LEAST_WIDTH = 560  # so that titles do not break into many lines


def draw_sheet(demo: Demo) -> Image.Image:
    """The title, the sentences and every image with its caption, one below the other."""
    lines = [(row, line) for row in demo.rows for line in _lines(row.panels)]
    width = max([LEAST_WIDTH, *(_width(line) for _, line in lines)])
    blocks: list[Image.Image] = [_text(demo.title, TITLE, width, INK)]
    blocks += [_text(sentence, NOTE, width, NOTE_INK) for sentence in demo.text]
    before: Row | None = None
    for row, line in lines:
        if row is not before:
            blocks.append(_text(row.title, HEADING, width, INK, above=GAP))
        blocks.append(_draw_line(line))
        before = row
    height = sum(block.height + GAP for block in blocks) - GAP
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for block in blocks:
        sheet.paste(block, (MARGIN, top))
        top += block.height + GAP
    return sheet


def _lines(panels: Sequence[Panel]) -> list[list[Panel]]:
    """The images of a row in lines that are no wider than WIDEST, of about equal length."""
    each = max(_panel_width(panel) for panel in panels) + GAP
    most = max(1, (WIDEST + GAP) // each)
    length = math.ceil(len(panels) / math.ceil(len(panels) / most))
    return [list(panels[k : k + length]) for k in range(0, len(panels), length)]


def _panel_width(panel: Panel) -> int:
    """The width of an image, or of the longest word of its caption."""
    return max([panel.image.width, *(text_width(word, CAPTION) for word in panel.caption.split())])


def _width(line: Sequence[Panel]) -> int:
    return sum(_panel_width(panel) + GAP for panel in line) - GAP


def _draw_line(line: Sequence[Panel]) -> Image.Image:
    """Images side by side, their captions below them, all captions at one height."""
    captions = [wrapped(panel.caption, CAPTION, _panel_width(panel)) for panel in line]
    tallest = max(panel.image.height for panel in line)
    below = max(map(len, captions)) * (CAPTION + SPACING) + SPACING
    drawn = Image.new("RGB", (_width(line), tallest + below), PAPER)
    pen, left = ImageDraw.Draw(drawn), 0
    for panel, caption in zip(line, captions, strict=True):
        drawn.paste(panel.image, (left, 0))
        pen.rectangle((left, 0, left + panel.image.width - 1, panel.image.height - 1), outline=EDGE)
        _write_lines(pen, (left, panel.image.height + SPACING), caption, CAPTION, INK)
        left += _panel_width(panel) + GAP
    return drawn


def _text(text: str, size: int, width: int, colour: str, above: int = 0) -> Image.Image:
    lines = wrapped(text, size, width)
    block = Image.new("RGB", (width, above + len(lines) * (size + SPACING)), PAPER)
    _write_lines(ImageDraw.Draw(block), (0, above), lines, size, colour)
    return block


def _write_lines(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], size: int, colour: str
) -> None:
    for k, line in enumerate(lines):
        pen.text((place[0], place[1] + k * (size + SPACING)), line, colour, font(size))


def wrapped(text: str, size: int, width: int) -> list[str]:
    """A text in lines of at most `width` pixels; only a single word may be longer."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
