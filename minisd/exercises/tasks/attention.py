"""Scaled dot-product attention."""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal
from minisd.models.layers import readable_attention

TASK = """
softmax(q k^T / sqrt(d)) v: each query takes a weighted mean of the values (Vaswani et al. 2017, eq. 1).

q (B, heads, N, d); k and v (B, heads, M, d) -> (B, heads, N, d).
causal: query i sees only the keys 0 to i; then N = M.
"""


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return readable_attention(q, k, v, causal)[0]


def cases() -> list[Case]:
    plain = (normal(2, 3, 5, 7, seed=1), normal(2, 3, 11, 7, seed=2), normal(2, 3, 11, 7, seed=3))
    square = tuple(normal(1, 2, 6, 5, seed=seed) for seed in (4, 5, 6))
    huge = (200 * normal(1, 1, 3, 4, seed=7), 200 * normal(1, 1, 5, 4, seed=8), normal(1, 1, 5, 4, seed=9))
    return [Case("five queries, eleven keys", plain), Case("causal", (*square, True)), Case("large scores", huge)]


def _scores(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    scores = q @ k.transpose(-1, -2) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return scores


def _over_queries(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return _scores(q, k, q.shape[-1] ** -0.5, causal).softmax(-2).nan_to_num() @ v


def _unscaled(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return _scores(q, k, 1.0, causal).softmax(-1) @ v


def _scaled_by_keys(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return _scores(q, k, k.shape[-2] ** -0.5, causal).softmax(-1) @ v


def _scaled_after(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return _scores(q, k, 1.0, causal).softmax(-1) @ v * q.shape[-1] ** -0.5


def _overflowing(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    weights = _scores(q, k, q.shape[-1] ** -0.5, causal).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def _past_hidden(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    scores = _scores(q, k, q.shape[-1] ** -0.5, False)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-1), -math.inf)
    return scores.softmax(-1) @ v


def _not_causal(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return attention(q, k, v)


def _by_einsum(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -1e9).triu(1)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdim=True), v)


def _row_by_row(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    rows = []
    for i in range(q.shape[2]):
        last = i + 1 if causal else k.shape[2]
        scores = (q[:, :, i : i + 1] * k[:, :, :last]).sum(-1) / math.sqrt(q.shape[-1])
        rows.append((scores.softmax(-1)[..., None] * v[:, :, :last]).sum(2))
    return torch.stack(rows, 2)


def install(solution: Solution) -> AbstractContextManager[None]:
    def fused(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        return solution(q, k, v, is_causal)

    return replaced(torch.nn.functional, "scaled_dot_product_attention", fused)


EXERCISE = Exercise(
    number=4,
    name="attention",
    title="Scaled dot-product attention",
    level=2,
    minutes=15,
    notebook="03",
    task=TASK,
    reference=attention,
    answer=readable_attention,
    cases=cases,
    mistakes=(
        Mistake("the softmax is over the queries; each query must spread a weight of 1 over the keys", _over_queries),
        Mistake("the scores are not divided by sqrt(d)", _unscaled),
        Mistake("the scores are divided by the square root of the number of keys, not of d", _scaled_by_keys),
        Mistake("sqrt(d) is divided out after the softmax; the scores must be divided before", _scaled_after),
        Mistake("exp overflows for large scores; subtract the largest score of each query first", _overflowing),
        Mistake("the mask hides the past; a query must not see the keys after it", _past_hidden),
        Mistake("causal is ignored", _not_causal),
    ),
    hints=(
        "Scores of queries and keys, a softmax, a mean of the values. Over which axis must the weights sum to one?",
        "The scores are (B, heads, N, M): one number for each query and each key.",
        "torch.softmax subtracts the largest score for you; a masked score is minus infinity before it.",
    ),
    install=install,
    needs=("split_heads",),
    variants=(_by_einsum, _row_by_row),
    solution=_by_einsum,
    forbidden=("torch.nn.functional.scaled_dot_product_attention",),
)
