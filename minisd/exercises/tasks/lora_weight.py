"""A LoRA merged into a weight."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from minisd.adapters.lora import LowRank, by_layer
from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import normal

TASK = """
The weight with a LoRA (Hu et al. 2021): to the weight a product of two thin matrices is added, times alpha /
rank and times the strength `scale`.

weight (out, in), down (rank, in), up (out, rank); alpha and scale are numbers -> (out, in).
"""


def lora_weight(weight: Tensor, down: Tensor, up: Tensor, alpha: float, scale: float) -> Tensor:
    return weight + scale * alpha / len(down) * (up @ down)


def cases() -> list[Case]:
    def of(out: int, width: int, rank: int, alpha: float, scale: float) -> tuple[Any, ...]:
        shapes = ((out, width), (rank, width), (out, rank))
        return *(normal(*shape, seed=k) for k, shape in enumerate(shapes)), alpha, scale

    return [
        Case("rank 3, alpha 6", of(5, 7, 3, 6.0, 1.0)),
        Case("a square weight", of(4, 4, 4, 2.0, 0.5)),
        Case("scale 0", of(5, 7, 2, 2.0, 0.0)),
    ]


def _no_rank(weight: Tensor, down: Tensor, up: Tensor, alpha: float, scale: float) -> Tensor:
    return weight + scale * alpha * (up @ down)


def _no_alpha(weight: Tensor, down: Tensor, up: Tensor, alpha: float, scale: float) -> Tensor:
    return weight + scale * (up @ down)


def _alpha_below(weight: Tensor, down: Tensor, up: Tensor, alpha: float, scale: float) -> Tensor:
    return weight + scale * len(down) / alpha * (up @ down)


def _everything_scaled(weight: Tensor, down: Tensor, up: Tensor, alpha: float, scale: float) -> Tensor:
    return scale * (weight + alpha / len(down) * (up @ down))


def _replaced(weight: Tensor, down: Tensor, up: Tensor, alpha: float, scale: float) -> Tensor:
    return scale * alpha / len(down) * (up @ down)


def _by_sum(weight: Tensor, down: Tensor, up: Tensor, alpha: float, scale: float) -> Tensor:
    change = torch.einsum("or,ri->oi", up, down)
    return torch.add(weight, change, alpha=scale * alpha / down.shape[0])


def install(solution: Solution) -> AbstractContextManager[None]:
    def delta(self: LowRank, like: Tensor, scale: float = 1.0) -> Tensor:
        up, down = (part.to(like.device, like.dtype).flatten(1) for part in (self.up, self.down))
        zero = torch.zeros(len(up), down.shape[1], dtype=like.dtype, device=like.device)
        return solution(zero, down, up, self.factor * len(down), scale).reshape(like.shape)

    return replaced(LowRank, "delta", delta)


def _with_lora(sd: Any) -> dict[str, Any]:
    """Changes of some layers, drawn from a seed."""
    named = [each for each in sd.unet.named_parameters() if each[0].endswith("attention2.v.weight")][:3]
    parts = {
        name: LowRank(normal(4, weight.shape[1], seed=k), 0.02 * normal(len(weight), 4, seed=9 + k), 0.5)
        for k, (name, weight) in enumerate(named)
    }
    return {"lora": by_layer(sd.unet, parts)}


EXERCISE = Exercise(
    number=17,
    name="lora_weight",
    title="Merge a LoRA",
    level=2,
    minutes=15,
    notebook="25",
    task=TASK,
    reference=lora_weight,
    answer=LowRank.delta,
    cases=cases,
    mistakes=(
        Mistake("alpha is not divided by the rank", _no_rank),
        Mistake("alpha / rank is left out", _no_alpha),
        Mistake("alpha and the rank are exchanged in the fraction", _alpha_below),
        Mistake("the weight itself is scaled, too; with scale 0 it must be as it was", _everything_scaled),
        Mistake("the weight is replaced by its change; add it", _replaced),
    ),
    hints=(
        "The weight stays; a change is added to it, which alone is scaled. With scale 0 the result is the weight.",
        "Which product of `up` and `down` has the shape of the weight?",
        "The rank is the number of rows of `down`; the product is multiplied by two fractions or numbers.",
    ),
    install=install,
    run=_with_lora,
    variants=(_by_sum,),
)
