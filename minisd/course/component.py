"""What the wrapped parts of a pipeline share: `from_pretrained`, device and dtype, and the outputs of their calls."""

import os
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch

import weights_loader
from minisd.errors import InputError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion
from minisd.schedulers import Scheduler
from minisd.tokenizer import Tokenizer
from weights_loader.loading import load_network
from weights_loader.model_folder import MODEL_INDEX, SCHEDULER_CONFIG, ModelFolder
from weights_loader.settings import read_scheduler
from weights_loader.sources import EMBEDDED, EMBEDDED_MODELS

CLIP_L = "openai/clip-vit-large-patch14"  # the text encoder of SD 1.x; every SD 1.x checkpoint contains it
MODEL_WITH_CLIP_L = "CompVis/stable-diffusion-v1-4"  # the model of the courses, so nothing else is downloaded


LOCAL_REVISIONS = ("main", "fp16")  # which the courses name; a local model has only one

PREDICTION_TYPES: WeakKeyDictionary[UNet, str] = WeakKeyDictionary()  # what each loaded UNet predicts


def load(
    source: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    use_auth_token: bool | str | None = None,
    local_files_only: bool | None = None,
) -> StableDiffusion:
    """weights_loader.load with the arguments of the courses. Raises the same errors, and InputError for a token.

    revision: "main" and "fp16" are ignored for local models. variant: a model without files of that variant is loaded
    from the plain ones, with a warning. use_auth_token: True, False or None; ignored, because the login of the hub's
    client is used.
    """
    revision = _revision(source, revision, use_auth_token)
    dtype = torch_dtype or torch.float32

    def load_variant(variant: str | None) -> StableDiffusion:
        return weights_loader.load(source, variant=variant, revision=revision, dtype=dtype, offline=local_files_only)

    try:
        sd = load_variant(variant)
    except InputError as error:
        if variant is None or f"of variant {variant!r}" not in str(error):
            raise
        warnings.warn(f"{source} has no weights of variant {variant!r}; the plain ones are loaded.", stacklevel=3)
        sd = load_variant(None)
    PREDICTION_TYPES[sd.unet] = sd.scheduler.schedule.prediction_type
    return sd


def load_scheduler(
    source: str | Path,
    revision: str | None = None,
    use_auth_token: bool | str | None = None,
    local_files_only: bool | None = None,
) -> Scheduler:
    """The sampler of a model, also of a model of pixels, and of a folder that holds only scheduler_config.json."""
    revision = _revision(source, revision, use_auth_token)
    name = EMBEDDED if source in EMBEDDED_MODELS else source
    path = weights_loader.resolve(name, revision=revision, offline=local_files_only)
    if path.is_file():
        return weights_loader.load(path).scheduler
    notices: list[str] = []
    is_flat = (path / SCHEDULER_CONFIG).is_file() and not (path / "scheduler").is_dir()
    part = "" if is_flat else "scheduler"
    scheduler = read_scheduler(ModelFolder(path).json(part, SCHEDULER_CONFIG), notices)
    for notice in notices:
        warnings.warn(notice, stacklevel=3)
    return scheduler


def _revision(source: str | Path, revision: str | None, use_auth_token: bool | str | None) -> str | None:
    """The revision to ask the hub for: none for a local model."""
    if isinstance(use_auth_token, str):
        raise InputError("use_auth_token is a text, expected True; log in with `hf auth login`, or set HF_TOKEN.")
    is_local = source in EMBEDDED_MODELS or os.path.exists(os.path.expanduser(source))
    return None if is_local and revision in LOCAL_REVISIONS else revision


class CourseOutput(dict[str, Any]):
    """Named fields, read as out.sample, out["sample"] or out[0]."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"this output has no {name!r}, only {', '.join(self)}.")
        return self[name]

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class CourseComponent:
    """A wrapper of `core`, a part of a pipeline.

    Undefined attributes (config, parameters, ...) are those of `core`, or of its config (sample_size, ...).
    """

    core: Any
    kind: ClassVar[type]
    part: ClassVar[str] = ""  # its name in a pipeline

    def __init__(self, core: Any) -> None:
        self.core = core.core if isinstance(core, CourseComponent) else core
        if not isinstance(self.core, self.kind):
            name = type(self).__name__
            raise InputError(
                f"{name} got a {type(core).__name__}, expected minisd's {self.kind.__name__}; "
                f"use {name}.from_pretrained, or a part of a pipeline."
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        use_auth_token: bool | str | None = None,
        local_files_only: bool | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool | None = None,
    ) -> Self:
        """Load this part from a model (a name, hub id, folder or file) or from a folder that holds only this part.

        subfolder: the name of the part in a model; it may be left out. use_safetensors, low_cpu_mem_usage: ignored.
        Raises InputError for the subfolder of another part, and what weights_loader.load raises.
        """
        if subfolder not in (None, cls.part):
            raise InputError(f"subfolder is {subfolder!r}, expected {cls.part!r} for {cls.__name__}.")
        path = Path(os.path.expanduser(source))  # os.path raises for no name, unlike Path
        if subfolder is None and os.path.isdir(path) and not (path / MODEL_INDEX).is_file():
            if cls.kind is Tokenizer:
                return cls(Tokenizer.from_folder(path))
            return cls(load_network(path.resolve(), cls.kind, variant=variant, dtype=torch_dtype or torch.float32))
        source = MODEL_WITH_CLIP_L if source == CLIP_L else source
        return cls(getattr(load(source, revision, variant, torch_dtype, use_auth_token, local_files_only), cls.part))

    def __getattr__(self, name: str) -> Any:
        if name == "core" or name.startswith("__"):  # not set yet while it is copied
            raise AttributeError(name)
        if not hasattr(self.core, name) and hasattr(getattr(self.core, "config", None), name):
            return getattr(self.core.config, name)
        return getattr(self.core, name)

    def enable_gradient_checkpointing(self) -> None:
        """Accepted without effect: only the UNet is large enough for it."""

    def gradient_checkpointing_enable(self) -> None:
        """`enable_gradient_checkpointing` by another name."""
        self.enable_gradient_checkpointing()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.core.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.core.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the weights; the arguments are those of torch.nn.Module.to."""
        self.core.to(*args, **kwargs)
        return self

    def half(self) -> Self:
        """Convert the weights to float16."""
        return self.to(torch.float16)

    def float(self) -> Self:
        """Convert the weights to float32."""
        return self.to(torch.float32)

    def train(self, mode: bool = True) -> Self:
        """Set training mode."""
        self.core.train(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether the weights get gradients."""
        self.core.requires_grad_(requires_grad)
        return self
