"""The lessons: sources in src/, executed notebooks in this folder, their display helpers, builder and lint."""
