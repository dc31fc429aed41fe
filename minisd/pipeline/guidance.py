"""Guidance: the prediction is steered by prompts (classifier-free), or x by a loss on what the picture will be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.errors import CallbackError, InputError

Scale = float | Sequence[float] | Callable[[int], float]
Loss = Callable[[Tensor, int], Tensor]


def scales(value: Any, calls: int) -> tuple[float, ...]:
    """A guidance scale for each call of the UNet, from one number, as many numbers, or a function of the call's index.

    Raises InputError, also for a function that fails.
    """
    if callable(value):
        try:
            value = [value(i) for i in range(calls)]
        except Exception as error:
            raise InputError(
                f"guidance_scale as a function failed with {error!r}, expected a number for each call, 0..{calls - 1}."
            ) from error
    elif hasattr(value, "tolist"):  # of NumPy or PyTorch
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return (validation.guidance(value),) * calls
    if len(value) != calls:
        raise InputError(
            f"guidance_scale holds {len(value)} numbers, expected {calls}, one for each call of the UNet; "
            "a function of the call's index suits any number of them."
        )
    return tuple(validation.guidance(each) for each in value)


def combine(uncond: Tensor, cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Predictions (B, C, h, w) for the negative prompt and for the prompt -> the guided one (Ho & Salimans 2022).

    rescale, 0 to 1, gives each picture's guided prediction back the deviation of the conditional one, which guidance
    enlarges: against overexposure (Lin et al. 2024, equations 15 and 16; 0.7 is theirs).
    """
    guided = uncond + scale * (cond - uncond)
    if rescale == 0:
        return guided
    dims = tuple(range(1, cond.ndim))
    rescaled = guided * (cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return rescale * rescaled + (1 - rescale) * guided


@dataclass(frozen=True)
class Guide:
    """Loss guidance: before a step, x goes down the gradient of a loss on the clean picture predicted from it.

    loss(x0, i): x0 (B, C, h, w), the latents as predicted at call i -> a scalar, to be made small; summed over the
    pictures, each is steered as if alone. For a loss on pixels decode with gradients:
    sd.vae.decode(x0 / sd.vae.config.scaling_factor). every: at calls 0, every, 2 every, ... through_unet: the
    gradient passes the UNet as well; without, its output counts as given, which saves time and memory, as in the
    fast.ai lesson ("blue loss"):

        x <- x - scale sigma^2 d loss(x0(x)) / dx

    where sigma is the deviation of the noise in x, in the sampler's own space. So LMS does what the lesson does, and
    in DDIM's space sigma^2 is 1 - alpha_bar, which is the same move. The step then uses the output made before.
    Raises InputError for settings outside of these.
    """

    loss: Loss
    scale: float = 1.0
    every: int = 1
    through_unet: bool = True

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise InputError(f"guide is {self.loss!r}, expected a function of (x0, i), or a Guide with one.")
        validation.real_number(self.scale, "the guide's scale", -1e9, 1e9)
        validation.whole_number(self.every, "the guide's every", 1, 10**6)
        if not isinstance(self.through_unet, bool):
            raise InputError(f"the guide's through_unet is {self.through_unet!r}, expected True or False.")

    def move(
        self,
        i: int,
        x: Tensor,
        sigma: float,
        predict: Callable[[Tensor], Tensor],
        x0_of: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """x (B, C, h, w) -> x after the move, and the model's output before it.

        predict: x -> the model's output; x0_of: x and output -> the clean picture. Gradients are switched on here,
        whatever they are outside. Raises CallbackError when the loss fails, or is not one finite number that depends
        on x0.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("a guide needs gradients, which torch.inference_mode rules out; leave it, or use no_grad.")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            with torch.set_grad_enabled(self.through_unet):
                output = predict(x)
            loss = self._checked_loss(x0_of(x, output), i)
            (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
        if gradient is None:  # it depends on something else that has gradients, such as weights
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
        f"the guide's loss does not depend on x0 at step {i}, or by way of something without gradients; "
        "to reach pixels use sd.vae.decode(x0 / sd.vae.config.scaling_factor), not sd.decode."
    )
