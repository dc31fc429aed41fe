"""What the training cells of the courses import beside models: learning rates, and stand-ins for parts minisd lacks."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from minisd.errors import InputError


class NotNeeded:
    """A part of the official pipelines that minisd does without: `from_pretrained` gives None, as pipelines accept."""

    @classmethod
    def from_pretrained(cls, *source: Any, **options: Any) -> None:
        """None, for every source."""


class CLIPFeatureExtractor(NotNeeded):
    """The safety checker's preprocessing."""


class StableDiffusionSafetyChecker(NotNeeded):
    """The safety checker."""


def get_scheduler(
    name: str, optimizer: torch.optim.Optimizer, num_warmup_steps: int = 0, num_training_steps: int | None = None
) -> LambdaLR:
    """Factors of the learning rate for each step: from 0 to 1 in the warm-up, then by name.

    name: "constant", "constant_with_warmup", "linear" or "cosine", which fall to 0 at num_training_steps. "constant"
    has no warm-up. Raises InputError.
    """
    shapes = {
        "constant": lambda share: 1.0,
        "constant_with_warmup": lambda share: 1.0,
        "linear": lambda share: 1 - share,
        "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    }
    if name not in shapes:
        raise InputError(f"the learning rate's schedule is {name!r}, expected one of {', '.join(shapes)}.")
    if name in ("linear", "cosine") and num_training_steps is None:
        raise InputError(f"num_training_steps is None, expected the number of steps after which {name!r} ends.")
    warmup = 0 if name == "constant" else num_warmup_steps
    length = max((num_training_steps or 0) - warmup, 1)

    def factor(step: int) -> float:
        return step / warmup if step < warmup else shapes[name](min((step - warmup) / length, 1))

    return LambdaLR(optimizer, factor)


def get_cosine_schedule_with_warmup(
    optimizer: torch.optim.Optimizer, num_warmup_steps: int, num_training_steps: int
) -> LambdaLR:
    """`get_scheduler` with "cosine"."""
    return get_scheduler("cosine", optimizer, num_warmup_steps, num_training_steps)
