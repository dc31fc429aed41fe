"""Models for other tasks as small changes of a text-to-image model: a first layer that reads more, the rest low-rank.

What the first layer reads beside the latents starts at zero, and so do the changes (Hu et al. 2021): a fresh variant
draws what its model draws.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from minisd.adapters import LowRankChanges
from minisd.errors import InputError, MismatchError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion

CHANNELS = {"inpainting": 5, "depth": 1, "upscaling": 3}  # read beside the latents
RANK = 8
FIRST = "conv_in.weight"
NOISE_LEVELS = 50  # of the small picture that the upscaler knows


class Variant(LowRankChanges):
    """What a task changes of a UNet: `weights` are the changed ones, by name."""

    def __init__(self, unet: UNet, task: str) -> None:
        if task not in CHANNELS:
            raise InputError(f"there is no variant {task!r}, expected one of {', '.join(CHANNELS)}.")
        layers = unet.named_modules()
        names = [f"{name}.weight" for name, module in layers if isinstance(module, nn.Linear | nn.Conv2d)]
        super().__init__(unet, [name for name in names if name != FIRST], RANK)
        self.task = task
        first = unet.conv_in.weight.detach()
        self.beside = nn.Parameter(torch.zeros(len(first), CHANNELS[task], *first.shape[2:]))
        if task == "upscaling":
            self.noise_levels = nn.Parameter(torch.zeros(NOISE_LEVELS, unet.config.time_width))

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights of the UNet that are other ones for the task."""
        changed = super().weights(network)
        changed[FIRST] = torch.cat([network.get_parameter(FIRST), self.beside], dim=1)
        if self.task == "upscaling":
            changed["class_embedding.weight"] = self.noise_levels
        return changed


def blank(unet: UNet, task: str) -> UNet:
    """A UNet of the sizes of a task's, on the meta device."""
    config = replace(unet.config, in_channels=unet.config.in_channels + CHANNELS[task])
    with torch.device("meta"):
        return UNet(replace(config, class_count=NOISE_LEVELS) if task == "upscaling" else config)


@torch.no_grad()
def varied(sd: StableDiffusion, variant: Variant) -> StableDiffusion:
    """The pipeline for the variant's task; all but the UNet is shared with `sd`."""
    unet = blank(sd.unet, variant.task)
    own = {name: weight.clone() for name, weight in sd.unet.state_dict().items()}
    unet.load_state_dict(own | variant.to(sd.device, torch.float32).weights(sd.unet), strict=True, assign=True)
    unet = unet.to(sd.device, sd.dtype).eval()
    return StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, unet, sd.scheduler, sd.defaults, sd.low_res)


def variant_from(unet: UNet, task: str, tensors: Mapping[str, Tensor]) -> Variant:
    """The variant whose state is in `tensors`. Raises MismatchError for another UNet's."""
    variant = Variant(unet, task)
    try:
        variant.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise MismatchError(f"these are not the {task} changes of this UNet ({error}); train them anew.") from error
    return variant.requires_grad_(False)
