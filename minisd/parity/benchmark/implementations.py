"""The implementations that `minisd bench` compares: a model folder for all of them, and how each loads its parts.

No other module of minisd imports diffusers and transformers, and this one only inside functions.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minisd._internal.atomic_files import write_json
from minisd._internal.json_files import read_json
from minisd.errors import InputError, OutputError
from minisd.parity.benchmark.families import COMPONENTS, FAMILIES, NETWORKS, FamilyConfigs
from minisd.parity.benchmark.training import TrainingStep
from minisd.training.trainer import AUTOCAST, precision
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.formats.weight_file import open_weights
from weights_loader.loading import load, load_network
from weights_loader.model_folder import MODEL_INDEX, PREVIEW_FOLDER
from weights_loader.names import diffusers as official_names
from weights_loader.names import expand
from weights_loader.official_configs import text_json, unet_json, vae_json
from weights_loader.preview_configs import preview_json
from weights_loader.saving import save
from weights_loader.sources import EMBEDDED

IMPLEMENTATIONS = ("diffusers", "tuned", "minisd")  # tuned: diffusers, with its documented settings for speed
NORM_SPREAD = 0.1  # new norms have weights 1 and biases 0, which would hide a mix-up

Loader = Callable[[Path, torch.device, torch.dtype], Any]


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


def make_model(configs: FamilyConfigs, folder: Path) -> None:
    """Write a model folder in diffusers layout, float32: the embedded model, or one of any sizes with random weights.

    The tokenizer and the sampler are always the embedded model's. What the folder has already is kept. Raises
    OutputError.
    """
    if configs == FAMILIES[EMBEDDED]:
        if not (folder / MODEL_INDEX).exists():
            save(load(EMBEDDED), folder)
        _add_encoder(folder / PREVIEW_FOLDER)
        return
    for component in COMPONENTS:
        make_weights(component, configs, folder)
    with tempfile.TemporaryDirectory(prefix="minisd-bench-") as temporary:
        embedded = save(load(EMBEDDED), Path(temporary) / EMBEDDED)
        shutil.copytree(embedded, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*COMPONENTS))


def make_weights(component: str, configs: FamilyConfigs, folder: Path) -> None:
    """Write random float32 weights of reasonable scale to `folder`/`component`, named and stored as official ones.

    An existing folder is kept; a new one is written completely or not at all. Raises OutputError.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
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
        elif component == "preview":
            model = AutoencoderTiny.from_config(preview_json(configs.preview))
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
    if component == "preview":  # diffusers adds a key, and warns of it when it loads the folder
        write_json(preview_json(configs.preview), partial / "config.json", overwrite=True)
    partial.rename(final)


def _add_encoder(folder: Path) -> None:
    """Add a random encoder to a preview decoder that minisd saved: diffusers loads both together."""
    from diffusers import AutoencoderTiny

    file = open_weights(folder / "diffusion_pytorch_model.safetensors")
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderTiny.from_config(read_json(folder / "config.json"))
    tensors = model.state_dict() | {name: file.tensor(name) for name in file.shapes}
    save_safetensors(tensors, file.path, {"format": "pt"}, overwrite=True)


def loader(implementation: str, component: str) -> Loader:
    """The function that loads a part of a model folder; all libraries that it needs are imported here.

    component: a network, "pipeline" for all of them, or "training" for a `TrainingStep` of the UNet. Training keeps its
    weights in float32; another dtype is that of its autocast.
    """
    trains = component == "training"
    load_part = (_minisd if implementation == "minisd" else _diffusers)("unet" if trains else component)

    def load_all(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
        loaded = load_part(folder, device, torch.float32 if trains else dtype)
        if implementation == "tuned":
            for network in networks_of(loaded):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _training_step(implementation, loaded, device, dtype) if trains else loaded

    return load_all


def networks_of(loaded: Any) -> list[nn.Module]:
    """The networks of what a loader returned."""
    if isinstance(loaded, nn.Module):
        return [loaded]
    return [getattr(loaded, name) for name in NETWORKS if hasattr(loaded, name)]


def _minisd(part: str) -> Loader:
    if part == "pipeline":
        return lambda folder, device, dtype: load(folder, device=device, dtype=dtype)
    kind = COMPONENTS[part]
    return lambda folder, device, dtype: load_network(folder, kind, part, device=device, dtype=dtype)


def _diffusers(part: str) -> Loader:
    require_oracle()
    if part == "pipeline":
        from diffusers import StableDiffusionPipeline

        def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
            with warnings.catch_warnings():  # of arguments that its own calls still use
                warnings.simplefilter("ignore", FutureWarning)
                pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
            pipeline.set_progress_bar_config(disable=True)
            return pipeline.to(device)

        return load_pipeline

    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel

    def load_oracle(folder: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
        path = folder / part
        if part == "text_encoder":
            return CLIPTextModel.from_pretrained(path, dtype=dtype, local_files_only=True).eval().to(device)
        kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "preview": AutoencoderTiny}[part]
        return kind.from_pretrained(path, dtype=dtype, local_files_only=True).eval().to(device)

    return load_oracle


def _training_step(implementation: str, unet: Any, device: torch.device, dtype: torch.dtype) -> TrainingStep:
    """minisd trains as `minisd train` does; diffusers as its scripts do; tuned with the fused AdamW of PyTorch, too."""
    if implementation == "minisd":
        autocast = str(dtype).removeprefix("torch.")
        context = partial(precision, device.type, autocast if autocast in AUTOCAST else None)
        sources = expand(official_names.unet(unet.config), unet.state_dict())
        return TrainingStep(unet, context, {name: source.name for name, source in sources.items()}, fused=True)

    def autocast_of_scripts() -> AbstractContextManager[object]:
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    return TrainingStep(unet, autocast_of_scripts, fused=True if implementation == "tuned" else None)
