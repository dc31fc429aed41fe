"""The hub client: which files of a repository are needed, downloading, the cache, and its errors."""
