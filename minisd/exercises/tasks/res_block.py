"""The residual block."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal, random_weights
from minisd.models.layers import ResBlock

TASK = """
The forward pass of a residual block, from its layers: block.norm1, block.conv1, block.time, block.norm2,
block.conv2 and block.skip. Norm, SiLU, convolution, twice. The time goes through SiLU and block.time, and is
added to every place between the two halves. block.skip takes x to the width of the result, to which it is
added.

x (B, C, H, W), time (B, T) -> (B, C', H, W).
"""


def res_block(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x))) + _shift(block, F.silu(time))
    return block.skip(x) + block.conv2(F.silu(block.norm2(h)))


def cases() -> list[Case]:
    def of(width_in: int, width_out: int, seed: int) -> tuple[object, ...]:
        with random_weights(seed):
            block = ResBlock(width_in, width_out, 2, 1e-5, time_width=7).requires_grad_(False)
            for parameter in block.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return block, normal(2, width_in, 5, 4, seed=seed + 1), normal(2, 7, seed=seed + 2)

    return [Case("another width", of(4, 6, 1)), Case("the same width", of(4, 4, 5))]


def _shift(block: ResBlock, time: Tensor) -> Tensor:
    assert block.time is not None
    return block.time(time)[:, :, None, None]


def _time_after_norm(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    h = block.norm2(block.conv1(F.silu(block.norm1(x)))) + _shift(block, F.silu(time))
    return block.skip(x) + block.conv2(F.silu(h))


def _time_without_silu(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x))) + _shift(block, time)
    return block.skip(x) + block.conv2(F.silu(block.norm2(h)))


def _no_skip(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    return res_block(block, x, time) - block.skip(x)


def _no_time(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x)))
    return block.skip(x) + block.conv2(F.silu(block.norm2(h)))


def _after_convolution(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    h = block.conv1(block.norm1(x)) + _shift(block, F.silu(time))
    return block.skip(x) + block.conv2(block.norm2(h))


def _in_steps(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    h = block.norm1(x)
    h = block.conv1(h * torch.sigmoid(h))
    h = h + _shift(block, time * torch.sigmoid(time)).expand_as(h)
    h = block.norm2(h)
    return block.conv2(h * torch.sigmoid(h)) + block.skip(x)


def install(solution: Solution) -> AbstractContextManager[None]:
    plain = ResBlock.forward

    def forward(self: ResBlock, x: Tensor, time: Tensor | None = None) -> Tensor:
        return plain(self, x) if time is None else solution(self, x, time)  # the autoencoder's blocks have no time

    return replaced(ResBlock, "forward", forward)


EXERCISE = Exercise(
    number=6,
    name="res_block",
    title="The residual block",
    level=3,
    minutes=25,
    notebook="07",
    task=TASK,
    reference=res_block,
    answer=ResBlock,
    cases=cases,
    mistakes=(
        Mistake("the time is added after the second norm, which should see it", _time_after_norm),
        Mistake("the time does not go through SiLU", _time_without_silu),
        Mistake("x is not added at the end", _no_skip),
        Mistake("the time is not used", _no_time),
        Mistake("SiLU is left out after the norms", _after_convolution),
    ),
    hints=(
        "The halves are norm1, SiLU, conv1 and norm2, SiLU, conv2. The time is added after conv1, before norm2.",
        "block.time(...) is (B, C'); it needs two more axes to be added to every place.",
        "The last line is a sum of two things, one of which is block.skip of something.",
    ),
    install=install,
    needs=("group_norm", "timestep_embedding"),
    variants=(_in_steps,),
    forbidden=("minisd.models.layers.ResBlock.forward",),
)
