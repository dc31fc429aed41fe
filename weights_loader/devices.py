"""The devices of this machine and the dtypes of weights: check a choice, find the fastest device."""

import torch

from minisd.errors import DeviceError, InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def best_device() -> torch.device:
    """The fastest device of this machine: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises DeviceError where this machine does not have it."""
    have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    have += ["mps"] if torch.backends.mps.is_available() else []
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device is {device!r}, expected {' or '.join(have)}.") from error
    if str(found) not in have and not (found.type == "cuda" and found.index is None and "cuda:0" in have):
        raise DeviceError(f"device is {device!r}, which is not on this machine; expected {' or '.join(have)}.")
    return found


def check_dtype(dtype: torch.dtype) -> None:
    """Raise InputError for a dtype in which minisd neither loads nor saves weights."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(map(str, DTYPES))}.")
