"""Editing of given images by training on them."""
