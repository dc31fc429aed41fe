"""What the UNet is given and what it answers, call by call, while a pipeline draws."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minisd.models import UNet
from minisd.pipeline import StableDiffusion


class Call(NamedTuple):
    """One call of the UNet: its arguments, and its prediction (rows, C, h, w): with guidance, two rows an image."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor

    @property
    def latents(self) -> Tensor:
        """The noisy latents (B, C, h, w), scaled for the UNet, and the channels beside them."""
        return self.args[0].float()

    @property
    def t(self) -> int:
        """The timestep."""
        return round(float(torch.as_tensor(self.args[1]).reshape(-1)[0]))

    def again(self, unet: UNet) -> Tensor:
        """What the UNet answers to the same arguments now."""
        with torch.no_grad():
            answer: Tensor = unet(*self.args, **self.kwargs)
        return answer.float()


@contextmanager
def recorded_calls(unet: UNet) -> Iterator[list[Call]]:
    """Record the calls of a UNet inside the block; the images stay the same."""
    calls: list[Call] = []

    def keep(module: UNet, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        calls.append(Call((args[0].detach().clone(), *args[1:]), kwargs, output.detach().float()))

    handle = unet.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def clean_latents(sd: StableDiffusion, call: Call, output: Tensor) -> Tensor:
    """The clean latents x0 (rows, C, h, w) that a prediction for the latents of a call means."""
    schedule = sd.scheduler.schedule
    x = call.latents[:, : sd.vae.config.latent_channels]
    x = x.repeat(len(output) // len(x), 1, 1, 1)
    return schedule.x0_and_eps(x, output, schedule.alpha_bar(call.t))[0]
