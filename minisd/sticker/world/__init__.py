"""Sticker World: scenes of a few coloured objects, with a renderer, a caption grammar and an exact checker."""
