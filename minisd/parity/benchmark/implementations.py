"""The two implementations that `minisd bench` compares: random weights for both, and how each loads them.

No other module of minisd imports diffusers and transformers, and this one only inside functions.
"""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from minisd.errors import InputError, OutputError
from minisd.parity.benchmark.workloads import NETWORKS, FamilyConfigs
from weights_loader.loading import load_network
from weights_loader.official_configs import text_json, unet_json, vae_json

IMPLEMENTATIONS = ("diffusers", "minisd")
NORM_SPREAD = 0.1  # new norms have weights 1 and biases 0, which would hide a mix-up

Loader = Callable[[Path, torch.device, torch.dtype], nn.Module]


def require_oracle() -> dict[str, str]:
    """The versions of diffusers and transformers. Raises InputError if they are not installed."""
    try:
        import diffusers
        import transformers

        versions = {name: version(name) for name in ("diffusers", "transformers", "accelerate")}
    except ImportError as error:
        raise InputError(
            f"`minisd bench` needs {error.name}, which is not installed; run pip install 'minisd[oracle]'."
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return versions


def make_weights(component: str, configs: FamilyConfigs, folder: Path) -> None:
    """Write random float32 weights of reasonable scale to `folder`/`component`, named and stored as official ones.

    An existing folder is kept; a new one is written completely or not at all. Raises OutputError.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    final, partial = folder / component, folder / f"{component}.partial"
    if final.is_dir():
        return
    shutil.rmtree(partial, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if component == "text_encoder":
            model = CLIPTextModel(CLIPTextConfig(**text_json(configs.text_encoder)))
        elif component == "unet":
            model = UNet2DConditionModel.from_config(unet_json(configs.unet))
        else:
            model = AutoencoderKL.from_config(vae_json(configs.vae))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.add_(NORM_SPREAD * torch.randn(weight.shape))
    needed = sum(weight.nbytes for weight in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the weights of the {component} need {needed:,} bytes, {free:,} are free in {folder}; "
            "free some space, or name another folder with --keep."
        )
    model.save_pretrained(partial)
    partial.rename(final)


def loader(implementation: str, component: str) -> Loader:
    """The function that loads a component of a model folder; all libraries that it needs are imported here."""
    if implementation == "minisd":
        kind = NETWORKS[component]
        return lambda folder, device, dtype: load_network(folder, kind, component, device=device, dtype=dtype)

    require_oracle()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    def load_oracle(folder: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
        path = folder / component
        if component == "text_encoder":
            return CLIPTextModel.from_pretrained(path, dtype=dtype, local_files_only=True).eval().to(device)
        kind = UNet2DConditionModel if component == "unet" else AutoencoderKL
        return kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True).eval().to(device)

    return load_oracle
