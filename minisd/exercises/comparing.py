"""Comparing what a solution returns with what the reference returns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def difference(got: Any, expected: Any, rtol: float, atol: float) -> str | None:
    """How a result differs from the expected one, as a sentence; None if they agree within the tolerances."""
    if not isinstance(expected, Tensor):
        if isinstance(got, Tensor):
            return f"your function returns a tensor, expected {type(expected).__name__}."
        same = type(got) is type(expected) and got == expected
        return None if same else f"yours is {got!r:.200}, expected {expected!r:.200}."
    if got is None:
        return "your function returns nothing; its last line should be `return ...`."
    if not isinstance(got, Tensor) or got.layout != torch.strided:
        return f"your function returns {type(got).__name__}, expected a dense tensor."
    if got.device != expected.device:
        return f"your result is on {got.device}, expected {expected.device}; do not move tensors."
    if got.shape != expected.shape:
        return f"your result has the shape {tuple(got.shape)}, expected {tuple(expected.shape)}."
    if got.dtype != expected.dtype:
        return f"your result is {_name(got)}, expected {_name(expected)}."
    wrong = ~torch.isclose(got, expected, rtol=rtol, atol=atol)
    if not wrong.any():
        return None
    if got.numel() == 1:
        return f"your number is {float(got):.6g}, expected {float(expected):.6g}."
    bad = ~torch.isfinite(got)
    if bad.any():
        return f"{_share(bad)} of your numbers are NaN or infinite."
    largest = int((got - expected).abs().argmax())
    place = tuple(map(int, np.unravel_index(largest, got.shape)))  # torch's own imports sympy, which takes a second
    return (
        f"{_share(wrong)} of your numbers differ; the most at {list(place)}: yours {float(got[place]):.6g}, "
        f"expected {float(expected[place]):.6g}."
    )


def agree(one: Any, other: Any, rtol: float, atol: float) -> bool:
    """Whether two results are the same mistake: equal within the tolerances, NaN at the same places."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True)


def listed(values: Sequence[float]) -> str:
    """Shares as percentages."""
    return "  ".join(f"{100 * value:.1f} %" for value in values)


def kind(value: Any) -> str:
    """What a value is, without its numbers."""
    return f"a tensor of the shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def shown(name: str, value: Any) -> str:
    """An argument in a message: its name, with its shape or number where it has one."""
    if isinstance(value, Tensor):
        return f"{name} {tuple(value.shape)}"
    if isinstance(value, list) and all(isinstance(each, Tensor) for each in value):
        return f"{name} {[tuple(each.shape) for each in value]}"
    return f"{name}={value!r}" if isinstance(value, bool | int | float | str) else name


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _share(mask: Tensor) -> str:
    wrong, total = int(mask.sum()), mask.numel()
    return "all" if wrong == total else f"{wrong} of {total}"
