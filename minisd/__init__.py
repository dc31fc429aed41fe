"""minisd: Stable Diffusion from scratch in PyTorch, to learn from and to rely on.

from minisd import StableDiffusion, Tokenizer, UNet, Film  # each name is imported on first use
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {  # __init__.pyi lists the same names for editors and type checkers
    "configs": ["CLIPImageConfig", "CLIPTextConfig", "UNetConfig", "VAEConfig"],
    "errors": ["InputError", "MinisdError"],
    "interpret.attention_maps": ["overlay", "record_attention"],
    "interpret.film": ["Film"],
    "interpret.inversion": ["invert"],
    "models": ["CLIP", "VAE", "CLIPTextTransformer", "UNet"],
    "pipeline": ["DenoisingStep", "StableDiffusion", "View", "view_grid"],
    "pipeline.loss_guidance": ["Guide"],
    "schedulers": ["DDIM", "DDPM", "LCM", "LMS", "PNDM", "Euler", "EulerAncestral", "Heun", "NoiseSchedule", "UniPC"],
    "schedulers.dpm_solver": ["DPMSolverMultistep"],
    "tokenizer": ["Tokenizer"],
}
_MODULE_OF = {name: f"minisd.{module}" for module, names in _PUBLIC.items() for name in names}
_SUBMODULES = {name: f"minisd.{name}" for name in ("configs", "errors", "images", "models", "schedulers", "tokenizer")}

__all__ = ["__version__", *_MODULE_OF, *_SUBMODULES]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(_SUBMODULES[name])
    raise AttributeError(f"module 'minisd' has no attribute {name!r}; dir(minisd) lists the public names")


def __dir__() -> list[str]:
    return sorted(__all__)
