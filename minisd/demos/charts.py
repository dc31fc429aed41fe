"""Curves, bars and tables of coloured cells, drawn with Pillow at twice their size and reduced, for smooth lines."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageDraw

from minisd.demos.drawing import COLOURS, FAINT, INK, PAPER, font, heat_colour, text_width

LETTERS = 12  # pixels
SMOOTH = 2
MARGIN = 8


class Curve(NamedTuple):
    """A line through points (x, y), and its name, which is written at its end."""

    name: str
    points: Sequence[tuple[float, float]]


def draw_curves(
    curves: Sequence[Curve], across: str, up: str, size: tuple[int, int] = (420, 260), dots: bool = False
) -> Image.Image:
    """Curves in one frame. across, up: what the axes show; dots: mark the points."""
    xs, ys = ([point[k] for curve in curves for point in curve.points] for k in (0, 1))
    (left, right), (low, high) = _range(xs), _range(ys)
    names = max(text_width(curve.name, LETTERS) for curve in curves) + 14
    frame = (text_width(_tick(high, high - low), LETTERS) + 22, 26, size[0] - names - MARGIN, size[1] - 42)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            frame[0] + (x - left) / (right - left) * (frame[2] - frame[0]),
            frame[3] - (y - low) / (high - low) * (frame[3] - frame[1]),
        )

    canvas, pen = _canvas(size)
    for value in (low, (low + high) / 2, high):
        at = place(left, value)[1]
        _line(pen, [(frame[0], at), (frame[2], at)], "#dddddd", 1)
        _write(pen, (frame[0] - 6, at), _tick(value, high - low), FAINT, "rm")
    for value in (left, (left + right) / 2, right):
        _write(pen, (place(value, low)[0], frame[3] + 9), _tick(value, right - left), FAINT, "mt")
    _write(pen, ((frame[0] + frame[2]) / 2, size[1] - 4), across, INK, "mb")
    _write(pen, (MARGIN, 4), up, INK, "lt")
    ends = _apart([place(*curve.points[-1])[1] for curve in curves], LETTERS + 3, frame[1], frame[3])
    for k, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        colour = COLOURS[k % len(COLOURS)]
        path = [place(*point) for point in curve.points]
        _line(pen, path, colour, 2)
        for x, y in path if dots else ():
            pen.ellipse([SMOOTH * each for each in (x - 2.5, y - 2.5, x + 2.5, y + 2.5)], fill=colour)
        _write(pen, (frame[2] + 8, end), curve.name, colour, "lm")
    return canvas.resize(size, Image.Resampling.LANCZOS)


def draw_bars(values: Sequence[tuple[str, float]], unit: str, width: int = 420) -> Image.Image:
    """A bar for each name and number from 0 up, with the number beside it."""
    high = max((value for _, value in values), default=0) or 1
    texts = [f"{value:,.0f}{unit}" if value >= 10 or value == 0 else f"{value:.1f}{unit}" for _, value in values]
    names = max(text_width(name, LETTERS) for name, _ in values) + 10
    room = width - names - max(text_width(text, LETTERS) for text in texts) - 2 * MARGIN - 6
    step = LETTERS + 8
    canvas, pen = _canvas((width, step * len(values) + MARGIN))
    for k, ((name, value), text) in enumerate(zip(values, texts, strict=True)):
        middle = MARGIN / 2 + step * (k + 0.5)
        end = names + MARGIN + room * value / high
        _write(pen, (names, middle), name, INK, "rm")
        box = (names + MARGIN, middle - 6, max(end, names + MARGIN + 1), middle + 6)
        pen.rectangle([SMOOTH * each for each in box], fill=COLOURS[0])
        _write(pen, (end + 6, middle), text, INK, "lm")
    return canvas.resize((width, step * len(values) + MARGIN), Image.Resampling.LANCZOS)


def draw_cells(
    values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], high: float
) -> Image.Image:
    """A table of numbers from 0 up; the darker a cell, the larger its number, and `high` is darkest. None is empty."""
    wide = max([34, *(text_width(name, LETTERS) + 10 for name in columns)])
    left, tall = max(text_width(name, LETTERS) for name in rows) + 2 * MARGIN, LETTERS + 8
    size = (left + wide * len(columns) + MARGIN, tall * (len(rows) + 1) + MARGIN)
    canvas, pen = _canvas(size)
    for c, name in enumerate(columns):
        _write(pen, (left + wide * (c + 0.5), tall / 2), name, INK, "mm")
    for r, (name, cells) in enumerate(zip(rows, values, strict=True)):
        top = tall * (r + 1)
        _write(pen, (left - MARGIN, top + tall / 2), name, INK, "rm")
        for c, value in enumerate(cells):
            if value is None:
                continue
            fill, letters = heat_colour(value / max(high, 1e-12))
            box = (left + wide * c, top, left + wide * (c + 1) - 2, top + tall - 2)
            pen.rectangle([SMOOTH * each for each in box], fill=fill, outline="#dddddd")
            centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            _write(pen, centre, "0" if value == 0 else f"{value:.2f}", letters, "mm")
    return canvas.resize(size, Image.Resampling.LANCZOS)


def _canvas(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (SMOOTH * size[0], SMOOTH * size[1]), PAPER)
    return canvas, ImageDraw.Draw(canvas)


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: str, anchor: str) -> None:
    pen.text((SMOOTH * place[0], SMOOTH * place[1]), text, colour, font(SMOOTH * LETTERS), anchor=anchor)


def _line(pen: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
    pen.line([(SMOOTH * x, SMOOTH * y) for x, y in points], fill=colour, width=SMOOTH * width, joint="curve")


def _tick(value: float, span: float) -> str:
    """A number beside an axis of this length, to about a hundredth of it."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(span)))}f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest number, apart from each other."""
    low, high = min(values), max(values)
    return (low, high) if high - low > 1e-9 * max(1.0, abs(high)) else (low - 0.5, high + 0.5)


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights moved as little as needed so that names do not cover each other."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    moved = [min(max(place, low), high) for place in places]
    for before, k in pairwise(order):
        moved[k] = max(moved[k], moved[before] + gap)
    over = max(0.0, max(moved) - max(high, low + gap * (len(places) - 1)))
    return [math.floor(place - over) for place in moved]
