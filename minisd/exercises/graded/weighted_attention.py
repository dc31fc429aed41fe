"""Attention with a weight for each token."""

from torch import Tensor

from minisd.exercises.exercise import Case, Exercise
from minisd.exercises.inputs import normal, uniform

TEXT = """
Cross-attention in which each token of the text has a weight (Hertz et al. 2022 call it re-weighting; here the
sum is kept): after the softmax of q k^T / sqrt(d) over the tokens, the attention to token m is multiplied by
weights[m]; then the attention of each query is divided by its sum, so that it is 1 again; then the values are
averaged with it.

q (B, heads, N, d); k and v (B, heads, M, d); weights (B, M), none negative, at least one positive in each
row: they are the same for all heads and queries of an image -> (B, heads, N, d).
"""


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    raise NotImplementedError


def cases() -> list[Case]:
    def of(weights: Tensor, size: float = 1.0) -> tuple[Tensor, ...]:
        count = weights.shape[1]
        q, k, v = (normal(2, 3, length, 7, seed=seed) for seed, length in enumerate((5, count, count)))
        return size * q, k, v, weights

    ignored = uniform(2, 6, seed=4, low=0.2, high=3.0)
    ignored[:, 2] = 0
    return [
        Case("eleven tokens", of(uniform(2, 11, seed=3, low=0.2, high=3.0))),
        Case("a token of weight 0", of(ignored)),
        Case("large scores", of(uniform(2, 4, seed=5, low=0.5, high=2.0), 40.0)),
    ]


TASK = Exercise(
    number=106,
    name="weighted_attention",
    title="Attention with a weight for each token",
    level=3,
    minutes=20,
    notebook="21",
    task=TEXT,
    reference=weighted_attention,
    answer=None,
    cases=cases,
    mistakes=(),
    hints=(
        "Equal weights change nothing.",
        "weights must become (B, 1, 1, M).",
        "A weight multiplies the attention, not the score; sum(-1, keepdim=True) before the values come in.",
    ),
    needs=("attention",),
    forbidden=("torch.nn.functional.scaled_dot_product_attention",),
)
