"""The devices of this machine and the dtypes of weights: check a choice, find the fastest device."""

import torch

from minisd._internal.devices import check_device
from minisd.errors import InputError

__all__ = ["DTYPES", "best_device", "check_device", "check_dtype"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def best_device() -> torch.device:
    """The fastest device of this machine: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of a file are kept: their own, or float32 if minisd has no other for them."""
    return dtype if dtype in DTYPES else torch.float32


def check_dtype(dtype: torch.dtype) -> None:
    """Raise InputError for a dtype in which minisd neither loads nor saves weights."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(map(str, DTYPES))}.")
