"""Models on the Hugging Face hub: which files are needed, downloading them, the cache, and the errors."""
