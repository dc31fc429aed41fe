"""Demos: one file for each component of Stable Diffusion; a function from settings to what is shown; see README.md."""

from minisd.demos.catalogue import DEMOS, find
from minisd.demos.demo import Demo, Panel, Row, Table
from minisd.demos.sheet import draw_sheet

__all__ = ["DEMOS", "Demo", "Panel", "Row", "Table", "draw_sheet", "find"]
