"""The transformer block of the UNet."""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from minisd.configs import SD1_UNET
from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal, random_weights
from minisd.models.layers import repeat_batch_to
from minisd.models.unet import TransformerBlock

TASK = """
The forward pass of a transformer block, from its layers: self-attention (block.attention1), cross-attention to
the text (block.attention2), feed-forward (block.feed_forward). Each reads its input through its own norm
(block.norm1, norm2, norm3), and its result is added to that input, without the norm.

x (B, N, width), text (B, L, context_width) -> (B, N, width). block.attention2(x, text) attends from x to text.
"""


def transformer_block(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    x = x + block.attention1(block.norm1(x))
    x = x + block.attention2(block.norm2(x), text)
    return x + block.feed_forward(block.norm3(x))


def cases() -> list[Case]:
    def of(seed: int, width: int, places: int) -> tuple[object, ...]:
        with random_weights(seed):
            block = TransformerBlock(replace(SD1_UNET, context_width=9), width, 2, False).requires_grad_(False)
            for parameter in block.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return block, normal(2, places, width, seed=seed + 1), normal(2, 5, 9, seed=seed + 2)

    return [Case("six places", of(1, 8, 6)), Case("eleven places", of(4, 12, 11))]


def _norms_added(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    x = block.norm1(x)
    x = x + block.attention1(x)
    x = block.norm2(x)
    x = x + block.attention2(x, text)
    x = block.norm3(x)
    return x + block.feed_forward(x)


def _no_residual(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    x = block.attention1(block.norm1(x))
    x = block.attention2(block.norm2(x), text)
    return block.feed_forward(block.norm3(x))


def _norm_after(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    x = block.norm1(x + block.attention1(x))
    x = block.norm2(x + block.attention2(x, text))
    return block.norm3(x + block.feed_forward(x))


def _parallel(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    return (
        x
        + block.attention1(block.norm1(x))
        + block.attention2(block.norm2(x), text)
        + block.feed_forward(block.norm3(x))
    )


def _cross_first(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    x = x + block.attention2(block.norm2(x), text)
    x = x + block.attention1(block.norm1(x))
    return x + block.feed_forward(block.norm3(x))


def _no_norms(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    x = x + block.attention1(x)
    x = x + block.attention2(x, text)
    return x + block.feed_forward(x)


def _one_by_one(block: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
    return torch.cat([transformer_block(block, x[k : k + 1], text[k : k + 1]) for k in range(len(x))])


def install(solution: Solution) -> AbstractContextManager[None]:
    plain = TransformerBlock.forward

    def forward(self: TransformerBlock, x: Tensor, text: Tensor) -> Tensor:
        return plain(self, x, text) if self.only_cross_attention else solution(self, repeat_batch_to(x, text), text)

    return replaced(TransformerBlock, "forward", forward)


EXERCISE = Exercise(
    number=7,
    name="transformer_block",
    title="The transformer block",
    level=3,
    minutes=20,
    notebook="07",
    task=TASK,
    reference=transformer_block,
    answer=TransformerBlock,
    cases=cases,
    mistakes=(
        Mistake("the normalised x is added; add the x from before the norm", _norms_added),
        Mistake("nothing is added to its input; each part changes x, it does not replace it", _no_residual),
        Mistake("the norms come after the sums; here each part reads a normalised x", _norm_after),
        Mistake("all three parts read the first x; each reads the result of the one before", _parallel),
        Mistake("the text comes before self-attention", _cross_first),
        Mistake("the norms are left out", _no_norms),
    ),
    hints=(
        "Three lines of the same form, one for each part. Each reads the x of the line before, not the first x.",
        "x = x + part(norm(x))",
        "Only one of the three parts takes the text.",
    ),
    install=install,
    needs=("attention",),
    variants=(_one_by_one,),
    forbidden=("minisd.models.unet.TransformerBlock.forward",),
)
