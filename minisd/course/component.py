"""What the wrapped parts of a pipeline share: `from_pretrained`, device and dtype, and the outputs of their calls."""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch

import weights_loader
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from weights_loader.loading import load_network
from weights_loader.model_folder import MODEL_INDEX

CLIP_L = "openai/clip-vit-large-patch14"  # the text encoder of SD 1.x; every SD 1.x checkpoint contains it
MODEL_WITH_CLIP_L = "CompVis/stable-diffusion-v1-4"  # the model of the courses, so nothing else is downloaded


def load(
    source: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    use_auth_token: bool | str | None = None,
    local_files_only: bool | None = None,
) -> StableDiffusion:
    """weights_loader.load with the arguments of the courses. Raises the same errors, and InputError for a token.

    use_auth_token: True, False or None; ignored, because the login of the hub's client is used.
    """
    if isinstance(use_auth_token, str):
        raise InputError("use_auth_token is a text, expected True; log in with `hf auth login`, or set HF_TOKEN.")
    dtype = torch_dtype or torch.float32
    return weights_loader.load(source, revision=revision, variant=variant, dtype=dtype, offline=local_files_only)


class CourseOutput(dict[str, Any]):
    """Named fields, read as out.sample, out["sample"] or out[0]."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"this output has no {name!r}, only {', '.join(self)}.")
        return self[name]

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class CourseComponent:
    """A wrapper of `core`, a part of a pipeline; undefined attributes (config, parameters, ...) are those of `core`."""

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
    ) -> Self:
        """Load this part from a model (a name, hub id, folder or file) or from a folder that holds only this part.

        subfolder: the name of the part in a model; it may be left out.
        Raises InputError for the subfolder of another part, and what weights_loader.load raises.
        """
        if subfolder not in (None, cls.part):
            raise InputError(f"subfolder is {subfolder!r}, expected {cls.part!r} for {cls.__name__}.")
        path = Path(source).expanduser()
        if subfolder is None and path.is_dir() and not (path / MODEL_INDEX).is_file():
            if cls.kind is Tokenizer:
                return cls(Tokenizer.from_folder(path))
            return cls(load_network(path.resolve(), cls.kind, variant=variant, dtype=torch_dtype or torch.float32))
        source = MODEL_WITH_CLIP_L if source == CLIP_L else source
        return cls(getattr(load(source, revision, variant, torch_dtype, use_auth_token, local_files_only), cls.part))

    def __getattr__(self, name: str) -> Any:
        if name == "core" or name.startswith("__"):  # not set yet while it is copied
            raise AttributeError(name)
        return getattr(self.core, name)

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
