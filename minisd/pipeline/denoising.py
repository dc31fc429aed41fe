"""The denoising loop: noise becomes latents, call by call of the UNet. Every task is this one loop."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minisd._internal.nonfinite import explain_nonfinite
from minisd.errors import NumericalError
from minisd.models import VAE, UNet
from minisd.pipeline import guidance
from minisd.pipeline.conditioning import Condition
from minisd.pipeline.feature_reuse import FeatureReuse
from minisd.pipeline.initial_latents import InitialLatents, prepare_latents
from minisd.pipeline.noise import draw_noise
from minisd.pipeline.request import Request
from minisd.schedulers import Grid, NoiseSchedule, Scheduler
from minisd.schedulers.base import Memory


class DenoisingStep(NamedTuple):
    """Call i of the loop, at timestep t: the latents after the call, and the clean latents x0 predicted in it."""

    i: int
    t: Tensor
    latents: Tensor
    x0: Tensor


@torch.no_grad()
def denoising_loop(
    unet: UNet, vae: VAE, low_res: NoiseSchedule, request: Request, condition: Condition
) -> Iterator[DenoisingStep]:
    """The steps of a request. Raises NumericalError where the latents are not finite, CallbackError from a guide."""
    scheduler, grid, guide = request.scheduler, request.grid, request.guide
    device = unet.conv_in.weight.device

    def randn(shape: Sequence[int] = request.shape) -> Tensor:
        return draw_noise(shape, request.generators).to(device)

    initial = prepare_latents(request, vae, low_res, device, randn)
    called = unet if request.reuse_features == 1 else FeatureReuse(unet, request.reuse_features)
    predict = partial(_predict, called, request, initial, condition)
    x, memory = initial.x, None
    for i, t in enumerate(grid.timesteps[: request.stop]):
        if guide is None or i % guide.every:
            output = predict(i, x)
        else:
            x0_of = partial(_x0, scheduler, grid, i, memory)
            x, output = guide.descend(i, x, scheduler.noise_level(grid, i), partial(predict, i), x0_of)
        x, x0, memory = scheduler.step(grid, i, x, output, memory, randn)
        if initial.image_latents is not None and initial.repaint_mask is not None:
            # inpainting by a UNet that reads no mask: outside of it, back to the given image at the new noise level
            image_x = scheduler.add_noise(grid, i + 1, initial.image_latents, initial.noise)
            x = mask_blend(x, image_x, initial.repaint_mask)
        if not torch.isfinite(x).all():
            raise NumericalError(
                f"the latents are not finite after step {i} (timestep {float(t):g}): "
                f"{explain_nonfinite(unet, request.guidance_scales[i])}."
            )
        yield DenoisingStep(i, t, x, x0)


def mask_blend(x: Tensor, image_x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask (B, 1, h, w) is 1, the given image where it is 0: both (B, C, h, w) at one noise level."""
    return torch.lerp(image_x, x, mask)


def _predict(
    unet: UNet | FeatureReuse, request: Request, initial: InitialLatents, condition: Condition, i: int, x: Tensor
) -> Tensor:
    """The model output at call i for x (B, C, h, w), guided unless the guidance scale of this call is 1."""
    scale = request.guidance_scales[i]
    learned = None if request.learned_scales is None else request.learned_scales[i]
    scaled = request.scheduler.scale_input(request.grid, i, x)
    latents = request.views.look(torch.cat([scaled, *initial.extra_channels], dim=1)).to(condition.text.dtype)
    if scale == 1:
        condition = condition.last(len(latents))  # without the negative prompts
    # with guidance the condition has twice the rows of the latents: the UNet repeats the latents
    t = request.grid.timesteps[i]
    output = unet(latents, t, condition.text, initial.low_res_level, condition.pooled_and_sizes, learned).float()
    if scale != 1:
        uncond, cond = output.chunk(2)
        output = guidance.combine(uncond, cond, scale, request.guidance_rescale)
    return request.views.average(output)


def _x0(scheduler: Scheduler, grid: Grid, i: int, memory: Memory | None, x: Tensor, output: Tensor) -> Tensor:
    """The clean latents that call i predicts: those of a sampler step without added noise."""
    return scheduler.step(grid, i, x, output, memory, partial(torch.zeros_like, x)).x0
