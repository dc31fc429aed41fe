"""The seconds that a call takes, by the clock on the wall or in processor time."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def processor_seconds() -> float:
    """The processor time of this process and of its finished children so far."""
    import resource  # not on Windows

    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


CLOCKS = {"wall": time.perf_counter, "processor": processor_seconds}


def timed(device: torch.device, clock: str, call: Callable[..., Tensor], *args: Any) -> tuple[float, Tensor]:
    """The seconds that a call takes on one of CLOCKS, or on a GPU between two CUDA events, and its output."""
    if device.type == "cuda":
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        began.record()
        output = call(*args)
        ended.record()
        torch.cuda.synchronize(device)
        return began.elapsed_time(ended) / 1e3, output
    start = CLOCKS[clock]()
    output = call(*args)
    return CLOCKS[clock]() - start, output
