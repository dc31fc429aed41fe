"""The autoencoder and the denoiser, with outputs that have names, in memory as PyTorch has it by default.

The modules compute in channels_last; `view` would fail on that, and `torch.randn_like` draw other numbers.
"""

from typing import ClassVar

from torch import Tensor

from minisd.course.component import Component
from minisd.course.output import Output
from minisd.models import VAE, UNet
from minisd.models.vae import Gaussian


class AutoencoderKL(Component):
    """The autoencoder. It speaks raw latents: 0.18215 is the caller's."""

    core: VAE
    kind: ClassVar[type] = VAE
    part: ClassVar[str] = "vae"

    def encode(self, pixels: Tensor, return_dict: bool = True) -> Output | tuple[Gaussian]:
        """Pixels (B, 3, H, W) in [-1, 1] -> .latent_dist, with .mean, .std, .mode() and .sample(generator)."""
        gaussian = self.core.encode(pixels)
        return Output(latent_dist=gaussian) if return_dict else (gaussian,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> Output | tuple[Tensor]:
        """Raw latents (B, C, h, w) -> .sample, pixels (B, 3, H, W)."""
        pixels = self.core.decode(latents).contiguous()
        return Output(sample=pixels) if return_dict else (pixels,)


class UNet2DConditionModel(Component):
    """The denoiser."""

    core: UNet
    kind: ClassVar[type] = UNet
    part: ClassVar[str] = "unet"

    @property
    def in_channels(self) -> int:
        """Channels of the latents that it reads."""
        return self.core.config.in_channels

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,
    ) -> Output | tuple[Tensor]:
        """Latents (B, C, h, w), timestep () or (B,), text states (B, L, width) -> .sample (B, C, h, w)."""
        output = self.core(sample, timestep, encoder_hidden_states).contiguous()
        return Output(sample=output) if return_dict else (output,)
