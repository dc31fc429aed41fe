"""Where the time of a call goes: the operations of PyTorch that take most of it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

SHOWN = 5


@dataclass(frozen=True)
class Share:
    """An operation, how often it is called, and its share of the call's time, without operations that it calls."""

    operation: str
    calls: int
    share: float

    def __str__(self) -> str:
        return f"{self.operation} {100 * self.share:.0f} % ({self.calls})"


def shares(call: Callable[..., Any], *args: Any) -> tuple[Share, ...]:
    """The operations on the CPU with the largest shares, from one call."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # below 6 it writes lines of its own to stderr
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call(*args)
    events = recorded.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:SHOWN]
    return tuple(
        Share(event.key.removeprefix("aten::"), event.count, event.self_cpu_time_total / total) for event in largest
    )
