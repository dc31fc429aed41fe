"""The arguments of a call: one dataclass, and the defaults that travel with a model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import torch
from torch import Tensor

from minisd._internal.config_fields import Range, Size, check_fields
from minisd.images import Picture
from minisd.pipeline.guidance import Scale
from minisd.pipeline.loss_guidance import Guide, Loss
from minisd.pipeline.prompts import Texts
from minisd.pipeline.sdxl_sizes import MicroConditioning
from minisd.pipeline.views import View


@dataclass(frozen=True)
class Defaults:
    """The settings that a model works best with; they travel with the model.

    words: every word that the model was trained on, separated by spaces; empty where the list is unknown.
    zero_empty_prompt: whether SDXL's condition for an empty negative prompt is zeros, not the encoded "".
    Raises InputError for values of another kind, or out of range.
    """

    num_inference_steps: Size = 50
    guidance_scale: Annotated[float, Range(-1000, 1000)] = 7.5
    words: str = ""
    zero_empty_prompt: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


DEFAULTS = Defaults()
UPSCALER_DEFAULTS = Defaults(num_inference_steps=75, guidance_scale=9.0)
SDXL_DEFAULTS = Defaults(guidance_scale=5.0)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What `StableDiffusion.__call__` and `denoise` accept, not checked yet; __call__ documents each of them.

    None means "not given" for every argument: it becomes the default.
    """

    prompt: Texts | None = None
    negative_prompt: Texts | None = ""
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: Scale | None = None
    num_images_per_prompt: int = 1
    seed: int | None = None
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    latents: Tensor | None = None
    eta: float = 0.0
    image: Picture | None = None
    strength: float | None = None
    mask_image: Picture | None = None
    depth_map: Picture | None = None
    noise_level: int | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    micro: MicroConditioning | None = None
    guidance_rescale: float = 0.0
    prompt_2: Texts | None = None
    negative_prompt_2: Texts | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    guide: Guide | Loss | None = None
    views: Sequence[View] | None = None
    reuse_features: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) is None:
                object.__setattr__(self, each.name, each.default)
