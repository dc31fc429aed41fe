"""Read and write the files of adapters, LoRA and textual inversion, in every common format."""

from weights_loader.adapters.lora import load_lora
from weights_loader.adapters.saving import save_embedding, save_lora
from weights_loader.adapters.textual_inversion import load_embedding

__all__ = ["load_embedding", "load_lora", "save_embedding", "save_lora"]
