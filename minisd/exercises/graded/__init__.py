"""Graded tasks: what to write, and inputs; the answers are not in the library, an instructor keeps them."""
