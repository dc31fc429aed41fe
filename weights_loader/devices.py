"""The devices of this machine and the dtypes of weights: check a choice, find the fastest device."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from minisd._internal.devices import check_device, computes_in
from minisd._internal.messages import listed
from minisd.errors import InputError, NumericalError

__all__ = ["DTYPES", "best_device", "best_dtype", "check_device", "check_dtype", "converted", "stored_dtype"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def best_device() -> torch.device:
    """The fastest device of this machine: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """The fastest dtype of a device for models of the official sizes, without a visible loss.

    Half precision where the device has instructions for it: bfloat16, whose numbers cannot overflow, before float16.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if computes_in("bfloat16", device.type) else torch.float32


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of a file are kept: their own, or float32 if minisd has no other for them."""
    return dtype if dtype in DTYPES else torch.float32


def check_dtype(dtype: torch.dtype) -> None:
    """Raise InputError for a dtype in which minisd neither loads nor saves weights."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(map(str, DTYPES))}.")


def converted(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Mapping[str, Tensor]:
    """The tensors in a dtype; None keeps theirs. Raises NumericalError for numbers that the dtype cannot hold."""
    if dtype is None:
        return tensors
    new = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    lost = [name for name, tensor in new.items() if not _is_finite(tensor) and _is_finite(tensors[name])]
    if lost:
        raise NumericalError(
            f"{len(lost)} tensors have numbers too large for {dtype} ({listed(lost, 3)}); save in torch.bfloat16, or "
            "keep their precision."
        )
    return new


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, by their extremes, which is ten times faster."""
    return not tensor.numel() or all(map(math.isfinite, (float(end) for end in torch.aminmax(tensor.detach()))))
