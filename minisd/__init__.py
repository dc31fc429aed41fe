"""minisd: Stable Diffusion from scratch in PyTorch, to learn from and to rely on."""

__version__ = "0.1.0"
