"""Rows of loading, each measured in a new process: `python -m minisd.parity.benchmark.load LIBRARY COMPONENT ...`."""

import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from minisd.parity.benchmark import implementations
from minisd.parity.benchmark.families import NETWORKS
from minisd.parity.benchmark.new_process import peak_resident, resident, result_of
from minisd.parity.benchmark.rows import Row, Setup, name_of
from minisd.parity.benchmark.timing import CLOCKS

PAGE = 4096
LIBRARIES = ("diffusers", "minisd")


class Loading(NamedTuple):
    """Seconds until the network is loaded, and until all of it is in memory; peak memory; checksums of the weights."""

    seconds: float
    seconds_read: float
    peak_bytes: int | None  # resident memory above that after the imports; pages of a mapped file count
    checksums: list[int]


def rows(setup: Setup) -> Iterator[Row]:
    """Rows of each component on the CPU, from a cached file: seconds to load it, seconds to read all of it, memory.

    A mapped file is read when its tensors are first used, hence the second row.
    """
    for component in NETWORKS:
        for file in _files(component, setup.folder):  # into the page cache
            with open(file, "rb") as opened:
                while opened.read(2**24):
                    pass
        for dtype in setup.cpu_dtypes:
            yield from _rows(component, setup, dtype)


def _rows(component: str, setup: Setup, dtype: torch.dtype) -> Iterator[Row]:
    runs: dict[str, list[Loading]] = {library: [] for library in LIBRARIES}
    for _ in range(setup.repeats):
        for library in LIBRARIES:
            runs[library].append(measure_in_new_process(library, component, setup.folder, dtype, setup.clock))
    expected, found = (Counter(runs[library][-1].checksums) for library in LIBRARIES)
    error = ((expected - found) + (found - expected)).total() / (expected + found).total()

    def row(what: str, unit: str, value: Callable[[Loading], float]) -> Row:
        diffusers, minisd = ([value(each) for each in runs[library]] for library in LIBRARIES)
        return Row(what, "cpu", name_of(dtype), unit, diffusers, minisd, error)

    what = f"load the {component.replace('_', ' ')}"
    yield row(what, "s", lambda each: each.seconds)
    yield row(f"{what}, read all of it", "s", lambda each: each.seconds_read)
    if runs["minisd"][0].peak_bytes is not None:
        size = sum(file.stat().st_size for file in _files(component, setup.folder))
        yield row(f"{what}, peak memory", "x file", lambda each: (each.peak_bytes or 0) / size)


def measure_in_new_process(
    library: str, component: str, folder: Path, dtype: torch.dtype, clock: str = "wall"
) -> Loading:
    """`measure` in a new process with the same number of threads. Raises MinisdError if it fails."""
    name = name_of(dtype)
    what = f"loading the {component} with {library} in {name}"
    return Loading(*result_of(__name__, (library, component, folder, name, clock), what))


def measure(library: str, component: str, folder: Path, dtype: torch.dtype, clock: str = "wall") -> Loading:
    """Load a component, read one number of each memory page, then compute the checksum of every weight."""
    load, seconds = implementations.loader(library, component), CLOCKS[clock]
    before = resident()
    began = seconds()
    network = load(folder, torch.device("cpu"), dtype)
    loaded = seconds()
    touch(network)
    read = seconds()
    peak = peak_resident()
    above = None if before is None or peak is None else peak - before
    checksums = sorted(zlib.crc32(_bytes(weight)) for weight in network.parameters())
    return Loading(loaded - began, read - began, above, checksums)


def touch(network: nn.Module) -> None:
    """Read one number of each memory page, so that a mapped file is in memory."""
    for weight in network.parameters():
        in_memory_order = weight.detach().as_strided((weight.numel(),), (1,), weight.storage_offset())
        in_memory_order[:: PAGE // weight.itemsize].sum()


def _bytes(weight: torch.Tensor) -> Any:
    return weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def _files(component: str, folder: Path) -> list[Path]:
    return list((folder / component).glob("*.safetensors"))


if __name__ == "__main__":
    library, component, folder, dtype, clock = sys.argv[1:]
    print(json.dumps(measure(library, component, Path(folder), getattr(torch, dtype), clock)))
