"""Feature reuse: most calls of the UNet run only its ends (DeepCache, Ma et al. 2024). Faster, and approximate.

From one step to the next, the features of the lower resolutions change little. So only every n-th call runs the whole
UNet; the calls between compute the first convolution and the last block, and take what the last block reads beside it
from the last whole call.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd._internal import validation
from minisd.errors import InputError
from minisd.models import UNet
from minisd.models.layers import repeat_batch_to


def check_reuse(every: int, guide: object | None) -> int:
    """Of how many calls one is whole, 1 to 1000. Raises InputError, also beside a guide, which needs whole calls."""
    every = validation.whole_number(every, "reuse_features", 1, 1000)
    if every > 1 and guide is not None:
        raise InputError(
            "a guide and reuse_features were both given, but a guide needs whole calls; remove one of them."
        )
    return every


class FeatureReuse:
    """A UNet of whose calls one in `every` is whole; the arguments are those of UNet.forward.

    A call for another number of texts than before is whole, too.
    """

    def __init__(self, unet: UNet, every: int) -> None:
        self.unet, self.every = unet, every
        self.calls, self.deep = 0, torch.empty(0)

    def __call__(self, latents: Tensor, t: Tensor, text: Tensor, *more: Tensor | float | None) -> Tensor:
        """Latents (B, in_channels, h, w), timestep (), text states (B or 2 B, L, width) -> (B or 2 B, out, h, w)."""
        whole = self.calls % self.every == 0 or len(self.deep) != len(text)
        self.calls += 1
        if not whole:
            return self._ends(latents, t, text, *more)
        handle = self.unet.up[-1].resnets[-1].register_forward_pre_hook(self._keep)  # type: ignore[union-attr, index]
        try:
            return self.unet(latents, t, text, *more)
        finally:
            handle.remove()

    def _keep(self, block: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        """Keep what the last block reads, but for the output of the first convolution."""
        self.deep = inputs[0][:, : -self.unet.conv_in.out_channels]

    def _ends(self, latents: Tensor, t: Tensor, text: Tensor, *more: Tensor | float | None) -> Tensor:
        unet = self.unet
        time = unet.embed_time(t, latents, *more)  # type: ignore[arg-type]
        first = unet.conv_in(latents.contiguous(memory_format=torch.channels_last))
        x = torch.cat([self.deep, repeat_batch_to(first, self.deep)], dim=1)
        x = unet.up[-1].block(-1, x, time, text)  # type: ignore[operator]
        return unet.conv_out(F.silu(unet.norm_out(x)))
