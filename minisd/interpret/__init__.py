"""Look inside a pipeline: word heat maps, films, text vectors, DDIM inversion, ranking by CLIP; see README.md."""
