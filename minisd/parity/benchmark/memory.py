"""Rows of peak memory, each call in a new process: `python -m minisd.parity.benchmark.memory LIBRARY ROW FOLDER ...`.

The memory of a row is the peak of the resident memory during the first call, above that with all weights loaded.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from minisd.parity.benchmark.implementations import IMPLEMENTATIONS, loader, networks_of
from minisd.parity.benchmark.load import touch
from minisd.parity.benchmark.measure import CPU, check_memory, moved_inputs, reference_of
from minisd.parity.benchmark.new_process import forget_peak, peak_resident, resident, result_of
from minisd.parity.benchmark.rows import Row, Setup, allowed_error, error, name_of
from minisd.parity.benchmark.workloads import WORKLOADS

MEASURED = ("unet", "vae", "image", "train")
MIB = 2**20


class Peak(NamedTuple):
    """Bytes above the loaded weights, and the error of the output."""

    peak_bytes: int
    error: float


def rows(setup: Setup) -> Iterator[Row]:
    """A row for each workload and each dtype on the CPU; none where the system does not tell its memory.

    The workloads are those of MEASURED that are asked for, or all of them.
    """
    chosen = [name for name in MEASURED if name in setup.asked] or MEASURED
    for name in chosen if resident() is not None else ():
        if name == "image" and setup.configs.is_xl:
            continue
        check_memory(WORKLOADS[name], setup)
        with tempfile.TemporaryDirectory(prefix="minisd-bench-") as folder, torch.no_grad():
            file = Path(folder) / "inputs_and_reference.pt"
            inputs = WORKLOADS[name].inputs(setup.configs, setup.size)
            torch.save((inputs, reference_of(WORKLOADS[name], setup, inputs)), file)
            for dtype in setup.cpu_dtypes:
                yield _row(name, setup, dtype, file)


def _row(name: str, setup: Setup, dtype: torch.dtype, file: Path) -> Row:
    workload = WORKLOADS[name]
    runs: dict[str, list[Peak]] = {library: [] for library in IMPLEMENTATIONS}
    for _ in range(setup.repeats):
        for library in IMPLEMENTATIONS:
            arguments = (library, name, setup.folder, name_of(dtype), file)
            runs[library].append(Peak(*result_of(__name__, arguments, f"the {workload.what} with {library}")))
    diffusers, tuned, minisd = ([run.peak_bytes / MIB for run in runs[library]] for library in IMPLEMENTATIONS)
    error, oracle_error = runs["minisd"][-1].error, runs["diffusers"][-1].error
    gate = allowed_error(oracle_error, workload.tolerance)
    what = f"{workload.what}, peak memory"
    return Row(what, "cpu", name_of(dtype), "MiB", diffusers, minisd, error, oracle_error, gate, tuned)


@torch.no_grad()
def measure(library: str, name: str, folder: Path, dtype: torch.dtype, file: Path) -> Peak:
    """Load what a workload needs, call it once; the peak of the call."""
    workload = WORKLOADS[name]
    inputs, reference = torch.load(file, weights_only=True)
    inputs = moved_inputs(workload, inputs, CPU, dtype)
    loaded = loader(library, workload.component)(folder, CPU, dtype)
    for network in networks_of(loaded):
        touch(network)
    call = partial(workload.minisd if library == "minisd" else workload.diffusers, loaded, *inputs)
    before = resident()
    forget_peak()
    output = call()
    peak = peak_resident()
    assert before is not None
    assert peak is not None
    return Peak(peak - before, error(workload.compared(loaded, output), reference))


if __name__ == "__main__":
    library, name, folder, dtype, file = sys.argv[1:]
    print(json.dumps(measure(library, name, Path(folder), getattr(torch, dtype), Path(file))))
