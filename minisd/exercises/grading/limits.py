"""What a learner's function may use: processor time, memory, size of files, processes."""

import contextlib
import ctypes
import math
import signal
import time
from pathlib import Path

try:
    import resource
except ImportError:  # Windows, which has no limits but the grader's clock
    resource = None  # type: ignore[assignment]

GRACE = 3.0  # seconds beyond the time of a function: its own limit, which names the line, should come first
LARGEST_FILE = 16 * 2**20
MIB = 2**20
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def limit(seconds: float, memory: int) -> None:
    """Limit this process, for good. memory: MiB that it may take beyond what it has already."""
    if resource is None:
        return
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds + GRACE))
    _lower(resource.RLIMIT_FSIZE, LARGEST_FILE)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NPROC, 0)  # neither processes nor threads; without effect for the superuser
    taken = _data_memory()
    if taken is not None:
        _lower(resource.RLIMIT_DATA, taken + memory * MIB)


def end_with_parent() -> None:
    """From now on this process is killed when the one that forked it ends; on Linux."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses some of them
        resource.setrlimit(kind, (value, value))


def _data_memory() -> int | None:
    """Bytes that RLIMIT_DATA counts: the private writable memory of this process; None except on Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return 1024 * int(lines["VmData"].split()[0])
