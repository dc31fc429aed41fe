"""Gradient checkpointing: keep only what enters the blocks of a UNet, and compute the rest again (Chen et al. 2016)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from minisd.models.layers import ResBlock
from minisd.models.unet import SpatialTransformer


@contextmanager
def gradient_checkpointing(unet: nn.Module, active: bool = True) -> Iterator[None]:
    """Within the block, calls of the UNet keep little for the backward pass, which computes the rest again.

    The gradients are equal. The backward pass may be outside of the block.
    """
    blocks = [each for each in unet.modules() if active and isinstance(each, ResBlock | SpatialTransformer)]
    for block in blocks:
        block.forward = _forgetful(block)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _forgetful(block: nn.Module) -> Callable[..., Tensor]:
    """The forward pass of a block, which is computed again when its gradient is needed."""
    plain = _Plain(block)

    def forward(*inputs: Any) -> Any:
        weights: dict[str, Tensor] = dict(
            plain.named_parameters()
        )  # those of now: of a LoRA they are exchanged during the call only
        again = partial(functional_call, plain, weights)
        return checkpoint(again, inputs, use_reentrant=False, context_fn=_same_attention)

    return forward


class _Plain(nn.Module):
    """A block with the forward pass of its class."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Any:
        return type(self.block).forward(self.block, *inputs)


def _same_attention() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first computation and the second, so that the second has the attention of `trainer.precision`."""
    return nullcontext(), sdpa_kernel(SDPBackend.MATH) if torch.is_autocast_enabled("cpu") else nullcontext()
