"""A training step for `minisd bench`: the loss of predicting noise, its gradients, AdamW."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

MAX_GRADIENT_NORM = 1.0  # as in the training scripts of diffusers, and in minisd
LEARNING_RATE = 0.0  # does the same work as any other, and each step has the gradients of the first


class TrainingStep:
    """A UNet with its optimizer. A call is a whole step; it returns the loss."""

    def __init__(
        self,
        unet: nn.Module,
        precision: Callable[[], AbstractContextManager[object]],
        names: Mapping[str, str] | None = None,
        fused: bool | None = None,
    ) -> None:
        """precision: the context of the forward pass. names: {parameter: official name}. fused: AdamW in one kernel."""
        self.unet, self.precision = unet.train().requires_grad_(True), precision
        self.names = {name: name for name, _ in unet.named_parameters()} if names is None else names
        self.optimizer = torch.optim.AdamW(unet.parameters(), LEARNING_RATE, fused=fused)

    @torch.enable_grad()
    def __call__(self, predict: Callable[..., Tensor], noisy: Tensor, noise: Tensor, *inputs: Tensor) -> Tensor:
        """predict(unet, noisy, *inputs) -> the predicted noise, (B, C, h, w)."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = mse_loss(predict(self.unet, noisy, *inputs).float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        return loss.detach()

    def gradients(self) -> Tensor:
        """All gradients in one vector, in the order of the official names."""
        named = {self.names[name]: p.grad for name, p in self.unet.named_parameters() if p.grad is not None}
        return torch.cat([named[name].float().flatten() for name in sorted(named)])
