"""Loss guidance: a differentiable loss on the predicted clean latents steers the noisy latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.errors import CallbackError, InputError

Loss = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Guide:
    """Loss guidance: before a sampler step, x descends the gradient of a loss on the predicted clean latents x0.

        x <- x - scale sigma^2 d loss(x0(x)) / dx

    sigma is the standard deviation of the noise in x, in the sampler's own space: LMS does what the fast.ai lesson
    does ("blue loss"), and in DDIM's space sigma^2 is 1 - alpha_bar, which is the same change. The sampler step then
    uses the model output from before the change.

    loss(x0, i): x0 (B, C, h, w), predicted at call i -> a scalar to minimise; a sum over the batch steers each image
    independently. A loss on pixels decodes with gradients: sd.vae.decode(sd.vae.raw(x0)).
    every: the guide acts at calls 0, every, 2 every, ... through_unet: the gradient passes through the UNet; False
    treats its output as constant, which saves time and memory, as in the lesson.
    Raises InputError for settings out of range.
    """

    loss: Loss
    scale: float = 1.0
    every: int = 1
    through_unet: bool = True

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise InputError(f"guide is {self.loss!r}, expected a function of (x0, i), or a Guide with one.")
        object.__setattr__(self, "scale", validation.real_number(self.scale, "the guide's scale", -1e9, 1e9))
        object.__setattr__(self, "every", validation.whole_number(self.every, "the guide's every", 1, 10**6))
        if not isinstance(self.through_unet, bool):
            raise InputError(f"the guide's through_unet is {self.through_unet!r}, expected True or False.")

    def descend(
        self,
        i: int,
        x: Tensor,
        sigma: float,
        predict: Callable[[Tensor], Tensor],
        x0_of: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """x (B, C, h, w) -> x after one descent, and the model output from before it.

        predict: x -> model output; x0_of: x and model output -> predicted x0. Gradients are enabled here, whatever
        the caller's mode is. Raises CallbackError where the loss fails or is not a finite scalar that depends on x0.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("a guide needs gradients, which torch.inference_mode disables; use torch.no_grad instead.")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            with torch.set_grad_enabled(self.through_unet):
                output = predict(x)
            loss = self._checked_loss(x0_of(x, output), i)
            (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
        if gradient is None:  # the loss depends on something else that has gradients, such as weights
            raise CallbackError(_independent(i))
        if not torch.isfinite(gradient).all():
            raise CallbackError(f"the gradient of the guide's loss is not finite at step {i}; look for 0/0 or sqrt(0).")
        return x.detach() - self.scale * sigma**2 * gradient, output.detach()

    def _checked_loss(self, x0: Tensor, i: int) -> Tensor:
        try:
            loss = self.loss(x0, i)
        except Exception as error:
            raise CallbackError(f"the guide's loss failed at step {i}: {error!r}") from error
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise CallbackError(f"the guide's loss gave {got} at step {i}, expected a scalar tensor, such as a .sum().")
        if not torch.isfinite(loss):
            raise CallbackError(f"the guide's loss is {loss.item()} at step {i}, expected a finite number.")
        if not loss.requires_grad:
            raise CallbackError(_independent(i))
        return loss


def _independent(i: int) -> str:
    return (
        f"the guide's loss has no gradient with respect to x0 at step {i}; compute it from x0 with differentiable "
        "operations, and decode pixels by sd.vae.decode(sd.vae.raw(x0)), not sd.decode."
    )
