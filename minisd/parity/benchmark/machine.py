"""The machine of `minisd bench`: what it is, what else runs on it, and the rates that it can reach."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import minisd
from minisd.parity.benchmark.timing import timed

CALLS, SECONDS = 8, 5.0
BUSY = 0.1  # cores that other processes may use before the machine counts as busy


def describe(versions: dict[str, str]) -> dict[str, Any]:
    """The machine and the versions of the libraries."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "CPU": models[0] if models else platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "cores allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "Python": platform.python_version(),
        "minisd": minisd.__version__,
        "torch": torch.__version__,
        **versions,
    }


class OtherProcesses:
    """The processor time that other processes take, from the moment that this is made. Linux only."""

    def __init__(self) -> None:
        self.began = _seconds()

    def cores(self) -> float | None:
        """How many cores they use on average since then; None if unknown."""
        now = _seconds()
        if now is None or self.began is None:
            return None
        wall, every, own = (b - a for a, b in zip(self.began, now, strict=True))
        return round(max(0.0, every - own) / max(wall, 1e-9), 2)


def note_on_others(cores: float | None, when: str) -> str:
    """A sentence on the processor time of other processes, which marks a busy machine."""
    if cores is None:
        return f"other processes {when}: unknown on this system"
    busy = "**busy machine**, times are less certain: " if cores > BUSY else ""
    return f"{busy}other processes take {cores:.2f} of {os.cpu_count()} cores {when}"


def _seconds(stat: Path = Path("/proc/stat")) -> tuple[float, float, float] | None:
    """Seconds so far: of the clock, of all processes, of this process and its finished children."""
    if not stat.is_file():
        return None
    user, nice, system, _idle, _wait, *others = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    every = (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")  # others: interrupts, other guests
    return time.monotonic(), every, sum(os.times()[:4])


@torch.no_grad()
def machine_peak(device: torch.device, dtype: torch.dtype, clock: str, tiny: bool = False) -> dict[str, Any]:
    """GFLOP/s of a large matmul and of a 3x3 convolution of the UNet in channels_last.

    The best of CALLS, or of those that begin within SECONDS: a processor without instructions for a dtype is slow.
    """
    n = 256 if tiny else 8192 if device.type == "cuda" else 1024
    batch, width, side = (2, 32, 16) if tiny else (64 if device.type == "cuda" else 2, 320, 64)
    a = torch.full((n, n), 0.5, device=device, dtype=dtype)
    x = torch.full((batch, width, side, side), 0.5, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.full((width, width, 3, 3), 0.5, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def best(flop: float, call: Callable[[], Tensor]) -> float:
        seconds: list[float] = []
        while len(seconds) < CALLS and sum(seconds) < SECONDS:
            seconds.append(timed(device, clock, call)[0])
        return flop / min(seconds) / 1e9

    return {
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "matmul": best(2 * n**3, lambda: a @ a),
        "conv": best(2 * batch * side**2 * width**2 * 9, lambda: F.conv2d(x, w, padding=1)),
    }
