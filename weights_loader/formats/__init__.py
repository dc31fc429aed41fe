"""Read and write weight files: safetensors, and PyTorch checkpoints."""
