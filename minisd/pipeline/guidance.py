"""Classifier-free guidance: one scale for each model call, and the combination of two predictions."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from minisd._internal import validation
from minisd.errors import InputError

Scale = float | Sequence[float] | Callable[[int], float]


def scales(value: Any, calls: int) -> tuple[float, ...]:
    """The guidance scale of each UNet call, from one number, a sequence of numbers, or a function of the call's index.

    Raises InputError, also where the function fails.
    """
    if callable(value):
        try:
            value = [value(i) for i in range(calls)]
        except Exception as error:
            raise InputError(
                f"guidance_scale as a function failed with {error!r}, expected a number for each call, 0..{calls - 1}."
            ) from error
    elif hasattr(value, "tolist"):  # a NumPy array or a tensor
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return (validation.guidance(value),) * calls
    if len(value) != calls:
        raise InputError(
            f"guidance_scale holds {len(value)} numbers, expected {calls}, one for each UNet call; "
            "pass a function of the call's index to be independent of their number."
        )
    return tuple(validation.guidance(each) for each in value)


def combine(uncond: Tensor, cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Predictions (B, C, h, w) for the negative prompt and for the prompt -> the guided one (Ho & Salimans 2022).

    Guidance enlarges the standard deviation of the prediction, which overexposes images. rescale, 0 to 1, brings it
    back towards that of the conditional prediction (Lin et al. 2024, equations 15 and 16; they use 0.7).
    """
    guided = uncond + scale * (cond - uncond)
    if rescale == 0:
        return guided
    dims = tuple(range(1, cond.ndim))
    rescaled = guided * (cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return rescale * rescaled + (1 - rescale) * guided
