"""A request: what a call asks for, checked and complete, before anything is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.configs import UNetConfig, VAEConfig
from minisd.errors import InputError
from minisd.pipeline.loss_guidance import Guide
from minisd.pipeline.prompts import PromptBatch
from minisd.pipeline.sdxl_sizes import MicroConditioning
from minisd.pipeline.views import Views
from minisd.schedulers import Grid, Scheduler


@dataclass(frozen=True, kw_only=True)
class Request:
    """A validated call: every value is decided, nothing is computed yet.

    prompt, negative: a row for each view of each image, all images of the first view first. shape: of the latents.
    views: what the UNet predicts, the whole image if nothing else was requested. start: the steps that the grid skips
    at the beginning, because an image is given. stop: the number of calls after which another model takes over.
    resumed: the latents come from another model and are not unit noise. image: (n, 3, H, W) in [-1, 1]; mask: (n, 1, H,
    W), 1 where to repaint; depth: (n, 1, H, W), any units, larger is nearer; each as given: n is 1, the number of
    prompts, or B. noise_level: of an upscaler's small image, 0 for other models. guidance_scales: one for each call.
    learned_scales: the same for a UNet that has learned guidance and reads its scale; then guidance_scales are 1.
    reuse_features: of how many calls one runs the whole UNet.
    notices: what the caller should be warned of.
    """

    task: str
    prompt: PromptBatch
    negative: PromptBatch
    shape: tuple[int, int, int, int]
    views: Views
    guidance_scales: tuple[float, ...]
    learned_scales: tuple[float, ...] | None
    guidance_rescale: float
    guide: Guide | None
    reuse_features: int
    scheduler: Scheduler
    grid: Grid
    start: int
    stop: int
    resumed: bool
    generators: list[torch.Generator]
    seeds: list[int] | None
    latents: Tensor | None
    image: Tensor | None
    mask: Tensor | None
    depth: Tensor | None
    noise_level: int
    micro: MicroConditioning
    notices: list[str]

    @property
    def guided(self) -> bool:
        """Whether some call needs two predictions."""
        return any(scale != 1 for scale in self.guidance_scales)


def task_of(unet: UNetConfig, vae: VAEConfig) -> str:
    """The task that a UNet was trained for, told by the channels that it reads beside the latents."""
    extra = unet.in_channels - vae.latent_channels
    tasks = {0: "text", 1: "depth", 3: "upscaling", vae.latent_channels + 1: "inpainting"}
    if extra not in tasks:
        expected = ", ".join(f"{channels} ({task})" for channels, task in tasks.items())
        raise InputError(
            f"the UNet reads {unet.in_channels} channels, {extra} beside the latents; expected one of {expected}."
        )
    return tasks[extra]
