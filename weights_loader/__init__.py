"""Load, inspect and save Stable Diffusion models in the official layouts.

import weights_loader
sd = weights_loader.load("sticker")
clip, tokenizer = weights_loader.load_clip("clip-vit-large-patch14")
"""

from weights_loader.adapters import load_embedding, load_lora, save_embedding, save_lora
from weights_loader.clip import load_clip, save_clip
from weights_loader.devices import best_device, best_dtype, check_device
from weights_loader.inspection import Inspection, inspect
from weights_loader.loading import load
from weights_loader.preview import load_preview_decoder
from weights_loader.saving import save
from weights_loader.sources import resolve

__all__ = [
    "Inspection",
    "best_device",
    "best_dtype",
    "check_device",
    "inspect",
    "load",
    "load_clip",
    "load_embedding",
    "load_lora",
    "load_preview_decoder",
    "resolve",
    "save",
    "save_clip",
    "save_embedding",
    "save_lora",
]
