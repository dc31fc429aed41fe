"""minisd: Stable Diffusion from scratch in PyTorch, to learn from and to rely on."""

__version__ = "0.1.0"

import warnings

with warnings.catch_warnings():  # in a notebook tqdm misses ipywidgets; what is a plain bar then needs no warning
    warnings.simplefilter("ignore")
    import tqdm.auto  # noqa: F401  (huggingface_hub does so, too, and then warns)
