"""The autoencoder and the UNet, with named outputs in PyTorch's default memory format.

The wrapped modules return channels_last tensors, on which `view` fails and `torch.randn_like` gives other numbers.
"""

from typing import ClassVar

from torch import Tensor

from minisd.course.component import CourseComponent, CourseOutput
from minisd.models import VAE, UNet
from minisd.models.vae import Gaussian
from minisd.training.checkpointing import gradient_checkpointing


class AutoencoderKL(CourseComponent):
    """The autoencoder. Its latents are raw: the caller applies the factor 0.18215."""

    core: VAE
    kind: ClassVar[type] = VAE
    part: ClassVar[str] = "vae"

    def encode(self, pixels: Tensor, return_dict: bool = True) -> CourseOutput | tuple[Gaussian]:
        """Pixels (B, 3, H, W) in [-1, 1] -> .latent_dist, with .mean, .std, .mode() and .sample(generator)."""
        gaussian = self.core.encode(pixels)
        return CourseOutput(latent_dist=gaussian) if return_dict else (gaussian,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> CourseOutput | tuple[Tensor]:
        """Raw latents (B, C, h, w) -> .sample, pixels (B, 3, H, W)."""
        pixels = self.core.decode(latents).contiguous()
        return CourseOutput(sample=pixels) if return_dict else (pixels,)


class UNet2DConditionModel(CourseComponent):
    """The UNet."""

    core: UNet
    kind: ClassVar[type] = UNet
    part: ClassVar[str] = "unet"
    _keeps_less = False

    def enable_gradient_checkpointing(self) -> None:
        """Keep less for the backward pass, which computes it again: training takes less memory and more time."""
        self._keeps_less = True

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,
    ) -> CourseOutput | tuple[Tensor]:
        """Latents (B, C, h, w), timestep () or (B,), text states (B, L, width) -> .sample (B, C, h, w)."""
        with gradient_checkpointing(self.core, self._keeps_less):
            output = self.core(sample, timestep, encoder_hidden_states).contiguous()
        return CourseOutput(sample=output) if return_dict else (output,)
