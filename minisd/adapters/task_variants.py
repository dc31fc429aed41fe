"""Variants of a text-to-image model for other tasks: extra input channels, and low-rank changes of the other layers.

The weights of the extra channels and the low-rank changes start at zero (Hu et al. 2021), so a new variant generates
the same images as its model.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from minisd.adapters import LowRankChanges
from minisd.errors import InputError, MismatchError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion

EXTRA_CHANNELS = {"inpainting": 5, "depth": 1, "upscaling": 3}  # input channels after those of the latents
RANK = 8
FIRST_LAYER = "conv_in.weight"
NOISE_LEVELS = 50  # noise levels of the small image that the upscaler is trained on


class Variant(LowRankChanges):
    """The changes of a UNet for a task. The parameter names are those in the variants' files."""

    def __init__(self, unet: UNet, task: str) -> None:
        if task not in EXTRA_CHANNELS:
            raise InputError(f"there is no variant {task!r}, expected one of {', '.join(EXTRA_CHANNELS)}.")
        layers = unet.named_modules()
        names = [f"{name}.weight" for name, module in layers if isinstance(module, nn.Linear | nn.Conv2d)]
        super().__init__(unet, [name for name in names if name != FIRST_LAYER], RANK)
        self.task = task
        first = unet.conv_in.weight.detach()
        self.beside = nn.Parameter(torch.zeros(len(first), EXTRA_CHANNELS[task], *first.shape[2:]))  # extra channels
        if task == "upscaling":
            self.noise_levels = nn.Parameter(torch.zeros(NOISE_LEVELS, unet.config.time_width))

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The UNet weights that differ for this task, by name."""
        changed = super().weights(network)
        changed[FIRST_LAYER] = torch.cat([network.get_parameter(FIRST_LAYER), self.beside], dim=1)
        if self.task == "upscaling":
            changed["class_embedding.weight"] = self.noise_levels
        return changed


def empty_unet(unet: UNet, task: str) -> UNet:
    """A UNet for a task, on the meta device: the sizes of `unet`, and the extra input channels."""
    config = replace(unet.config, in_channels=unet.config.in_channels + EXTRA_CHANNELS[task])
    with torch.device("meta"):
        return UNet(replace(config, class_count=NOISE_LEVELS) if task == "upscaling" else config)


@torch.no_grad()
def apply_variant(sd: StableDiffusion, variant: Variant) -> StableDiffusion:
    """A pipeline for the variant's task; it shares everything but the UNet with `sd`."""
    unet = empty_unet(sd.unet, variant.task)
    own = {name: weight.clone() for name, weight in sd.unet.state_dict().items()}
    unet.load_state_dict(own | variant.to(sd.device, torch.float32).weights(sd.unet), strict=True, assign=True)
    unet = unet.to(sd.device, sd.dtype).eval()
    adapted = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, unet, sd.scheduler, sd.defaults, sd.low_res)
    adapted.preview_decoder = sd.preview_decoder
    return adapted


def variant_from_tensors(unet: UNet, task: str, tensors: Mapping[str, Tensor]) -> Variant:
    """The variant with the state dict `tensors`. Raises MismatchError if it belongs to another UNet or task."""
    variant = Variant(unet, task)
    try:
        variant.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise MismatchError(f"these are not the {task} changes of this UNet ({error}); train them again.") from error
    return variant.requires_grad_(False)
