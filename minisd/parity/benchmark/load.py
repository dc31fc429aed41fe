"""Measure loading in a new process: `python -m minisd.parity.benchmark.load LIBRARY COMPONENT FOLDER DTYPE THREADS`.

Peak memory is only comparable in a new process, which holds no memory of an earlier load.
"""

import json
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from minisd.errors import MinisdError
from minisd.parity.benchmark import implementations

PAGE = 4096


class Loading(NamedTuple):
    """Seconds until the network is loaded, and until all of it is in memory; peak memory; checksums of the weights."""

    seconds: float
    seconds_read: float
    peak_bytes: int | None  # resident memory above that after the imports; pages of a mapped file count
    checksums: list[int]


def measure_in_new_process(library: str, component: str, folder: Path, dtype: torch.dtype) -> Loading:
    """`measure` in a new process with the same number of threads. Raises MinisdError if it fails."""
    name = str(dtype).removeprefix("torch.")
    arguments = [library, component, str(folder), name, str(torch.get_num_threads())]
    command = [sys.executable, "-m", __name__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MinisdError(f"loading the {component} with {library} in {name} failed: {reason}")
    return Loading(*json.loads(done.stdout.splitlines()[-1]))


def measure(library: str, component: str, folder: Path, dtype: torch.dtype) -> Loading:
    """Load a component, read one number of each memory page, then compute the checksum of every weight."""
    load = implementations.loader(library, component)
    before = _resident("VmRSS")
    began = time.perf_counter()
    network = load(folder, torch.device("cpu"), dtype)
    loaded = time.perf_counter()
    _touch(network)
    read = time.perf_counter()
    peak = _resident("VmHWM")
    above = None if before is None or peak is None else peak - before
    checksums = sorted(zlib.crc32(_bytes(weight)) for weight in network.parameters())
    return Loading(loaded - began, read - began, above, checksums)


def _touch(network: nn.Module) -> None:
    for weight in network.parameters():
        in_memory_order = weight.detach().as_strided((weight.numel(),), (1,), weight.storage_offset())
        in_memory_order[:: PAGE // weight.itemsize].sum()


def _bytes(weight: torch.Tensor) -> Any:
    return weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def _resident(key: str) -> int | None:
    """Resident memory of this process in bytes, now (VmRSS) or at its peak (VmHWM); None except on Linux.

    ru_maxrss cannot be used, because it starts with the peak of the parent process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")]
    return found[0] if found else None


if __name__ == "__main__":
    library, component, folder, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(measure(library, component, Path(folder), getattr(torch, dtype))))
