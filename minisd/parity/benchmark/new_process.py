"""Run a module of this package in a new process, and read the memory of this one.

Peak memory is only comparable in a new process, which holds no memory of earlier work.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from minisd.errors import MinisdError


def result_of(module: str, arguments: Sequence[object], what: str) -> Any:
    """The JSON value that `python -m module arguments` prints last. Raises MinisdError if it fails."""
    lines = output_of([sys.executable, "-m", module, *map(str, arguments)], what).splitlines()
    return json.loads(lines[-1])


def output_of(command: Sequence[str], what: str) -> str:
    """The standard output of a command with this process's number of threads. Raises MinisdError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MinisdError(f"{what} failed: {reason}")
    return done.stdout


def resident() -> int | None:
    """The resident memory of this process in bytes; None except on Linux."""
    return _status("VmRSS")


def peak_resident() -> int | None:
    """Its peak, since the process began or since `forget_peak`; None except on Linux.

    ru_maxrss cannot be used, because it starts with the peak of the parent process.
    """
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew at the memory of now, where the system allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")]
    return found[0] if found else None
