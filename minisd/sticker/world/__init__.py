"""Sticker World: a small world of coloured things, drawn, described and checked exactly."""
