"""The devices and dtypes that networks can be moved to: check a choice before anything moves."""

from typing import Any

import torch

from minisd._internal.messages import shown
from minisd.errors import DeviceError, InputError

COMPUTING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises DeviceError where this machine does not have it."""
    have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    have += ["mps"] if torch.backends.mps.is_available() else []
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device is {shown(device)}, expected {' or '.join(have)}.") from error
    alone = found.type if found.index in (None, 0) else str(found)  # cpu:0 is cpu
    if not {alone, str(found), f"{found.type}:{found.index or 0}"} & set(have):
        raise DeviceError(f"device is {str(device)!r}, which is not on this machine; expected {' or '.join(have)}.")
    return found


def check_move(
    device: torch.device | str | torch.dtype | None, dtype: torch.dtype | None
) -> tuple[torch.device | None, torch.dtype | None]:
    """The arguments of `to`, where a dtype may come alone, as for torch's modules. Raises InputError, DeviceError."""
    if isinstance(device, torch.dtype) and dtype is None:
        device, dtype = None, device
    if dtype is not None and dtype not in COMPUTING:
        raise InputError(f"dtype is {shown(dtype)}, expected one of {', '.join(map(str, COMPUTING))}.")
    return None if device is None else check_device(device), dtype  # type: ignore[arg-type]


def computes_in(dtype: str, device: str) -> bool:
    """Whether a device has instructions for a dtype, "bfloat16" or "float16", as far as PyTorch tells."""
    if device != "cpu":
        return True
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = {"bfloat16": ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"), "float16": ("amx_fp16", "avx512_fp16")}
    return any(capabilities.get(name, False) for name in names[dtype])
