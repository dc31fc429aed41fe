"""Guidance by several prompts."""

from torch import Tensor

from minisd.exercises.exercise import Case, Exercise
from minisd.exercises.inputs import normal, uniform

TEXT = """
Guidance by several prompts (Liu et al. 2022): each prompt draws the prediction away from the one without a
prompt, and the mean of the K differences, weighted, is enlarged:

without + scale sum_k w_k (given_k - without) / sum_k w_k

without (B, C, h, w): the prediction without a prompt; given (K, B, C, h, w): those with each prompt; weights
(K,), of which some may be negative, but not their sum; scale: a number -> (B, C, h, w).
"""


def blend_prompts(without: Tensor, given: Tensor, weights: Tensor, scale: float) -> Tensor:
    raise NotImplementedError


def cases() -> list[Case]:
    def of(count: int, weights: Tensor, scale: float) -> tuple[object, ...]:
        return normal(2, 3, 4, 5, seed=1), normal(count, 2, 3, 4, 5, seed=2), weights, scale

    some = uniform(3, seed=3, low=0.5, high=2.0)
    against = uniform(2, seed=4, low=0.5, high=1.0)
    against[1] *= -0.5
    return [
        Case("three prompts", of(3, some, 5.0)),
        Case("one of them negative", of(2, against, 2.5)),
        Case("one prompt", of(1, some[:1], 7.5)),
    ]


TASK = Exercise(
    number=104,
    name="blend_prompts",
    title="Guidance by several prompts",
    level=2,
    minutes=15,
    notebook="08",
    task=TEXT,
    reference=blend_prompts,
    answer=None,
    cases=cases,
    mistakes=(),
    hints=(
        "With one prompt this is the exercise guide, whatever its weight.",
        "weights need four more axes to be multiplied with the differences.",
        "The weights are divided by their own sum, not by K.",
    ),
    needs=("guide",),
    atol=1e-4,  # the scale multiplies rounding errors
)
