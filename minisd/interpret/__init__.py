"""Look inside a pipeline: word heat maps, films, text vectors, inversion, ranking by CLIP."""
