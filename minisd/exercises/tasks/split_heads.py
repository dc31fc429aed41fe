"""Tokens to heads."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal
from minisd.models.layers import Attention

TASK = """
Cut the width of each token into `heads` parts, so that every head attends for itself.

tokens (B, N, heads * d) -> (B, heads, N, d). The first d numbers of a token belong to the first head.
"""


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def cases() -> list[Case]:
    turned = normal(2, 12, 5, seed=2).transpose(1, 2)  # not contiguous
    return [Case("three heads", (normal(2, 7, 15, seed=1), 3)), Case("other memory layout", (turned, 4))]


def _only_viewed(tokens: Tensor, heads: int) -> Tensor:
    return tokens.reshape(len(tokens), heads, tokens.shape[1], -1)


def _heads_last(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)


def _by_chunks(tokens: Tensor, heads: int) -> Tensor:
    return torch.stack(tokens.chunk(heads, dim=-1), dim=1)


def install(solution: Solution) -> AbstractContextManager[None]:
    return replaced(Attention, "_split", lambda self, tokens: solution(tokens, self.heads))


EXERCISE = Exercise(
    number=5,
    name="split_heads",
    title="Tokens to heads",
    level=2,
    minutes=10,
    notebook="03",
    task=TASK,
    reference=split_heads,
    answer=Attention._split,
    cases=cases,
    mistakes=(
        Mistake(
            "the numbers are only read in another shape, which mixes tokens; two axes must be exchanged", _only_viewed
        ),
        Mistake("a head takes every so many numbers of a token; expected d numbers in a row", _heads_last),
    ),
    hints=(
        "Two steps: cut the last axis into two, then exchange two axes.",
        "After the cut the shape is (B, N, heads, d).",
        "A view cannot exchange axes; transpose can.",
    ),
    install=install,
    variants=(_by_chunks,),
)
