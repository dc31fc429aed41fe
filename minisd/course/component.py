"""A part of the pipeline under the courses' names, and how the courses load it: alone, by `from_pretrained`."""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch

import weights_loader
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from weights_loader import folder
from weights_loader.hub.repo_files import MODEL_INDEX

CLIP_L = "openai/clip-vit-large-patch14"  # the text encoder of SD 1.x, frozen: each of its checkpoints has it
HOLDS_CLIP_L = "CompVis/stable-diffusion-v1-4"  # the lessons' model, so no further download


def load(
    source: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    use_auth_token: bool | str | None = None,
    local_files_only: bool | None = None,
) -> StableDiffusion:
    """What weights_loader.load gives for a course's arguments. Raises what it raises, InputError for a token as text.

    use_auth_token: True, False or None, which change nothing: the hub's own login counts.
    """
    if isinstance(use_auth_token, str):
        raise InputError("use_auth_token is a text, expected True; log in once by `hf auth login`, or set HF_TOKEN.")
    dtype = torch.float32 if torch_dtype is None else torch_dtype
    return weights_loader.load(source, revision=revision, variant=variant, dtype=dtype, offline=local_files_only)


def load_alone(path: Path, part: str, variant: str | None, torch_dtype: torch.dtype | None) -> Any:
    """A part from a folder of its own, as stabilityai/sd-vae-ft-ema is. Raises what reading files raises."""
    path = path.resolve()
    if part == "tokenizer":
        return Tokenizer.from_folder(path)
    read: Any = {"vae": folder.load_vae, "unet": folder.load_unet, "text_encoder": folder.load_text_encoder}[part]
    return read(path.parent, variant, "cpu", torch.float32 if torch_dtype is None else torch_dtype, path.name)


class Component:
    """A module under the courses' names; what is not renamed (config, parameters(), ...) is its own."""

    core: Any
    kind: ClassVar[type]
    part: ClassVar[str] = ""  # what the pipeline calls it

    def __init__(self, core: Any) -> None:
        self.core = core.core if isinstance(core, Component) else core
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
        """This part of a model by name, hub id, folder or file; or of a folder that holds nothing else.

        subfolder: what the part is called in a model, as in the lessons; without it the same part is read.
        Raises InputError for another part's subfolder, and what weights_loader.load raises.
        """
        if subfolder not in (None, cls.part):
            raise InputError(f"subfolder is {subfolder!r}, expected {cls.part!r} for {cls.__name__}.")
        path = Path(source).expanduser()
        if subfolder is None and path.is_dir() and not (path / MODEL_INDEX).is_file():
            return cls(load_alone(path, cls.part, variant, torch_dtype))
        source = HOLDS_CLIP_L if source == CLIP_L else source
        return cls(getattr(load(source, revision, variant, torch_dtype, use_auth_token, local_files_only), cls.part))

    def __getattr__(self, name: str) -> Any:
        if name == "core" or name.startswith("__"):  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.core, name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.core.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return next(self.core.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the component; arguments as for torch.nn.Module.to."""
        self.core.to(*args, **kwargs)
        return self

    def half(self) -> Self:
        """In float16."""
        return self.to(torch.float16)

    def float(self) -> Self:
        """In float32."""
        return self.to(torch.float32)

    def train(self, mode: bool = True) -> Self:
        """For training, or not."""
        self.core.train(mode)
        return self

    def eval(self) -> Self:
        """Not for training."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether the weights are to have gradients."""
        self.core.requires_grad_(requires_grad)
        return self
