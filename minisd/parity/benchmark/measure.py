"""Measurements of `minisd bench`. The two libraries run in turn, so a change of the machine's load affects both."""

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.parity.benchmark.implementations import IMPLEMENTATIONS, loader
from minisd.parity.benchmark.load import Loading, measure_in_new_process
from minisd.parity.benchmark.workloads import Workload

TOLERANCE = 1e-4  # of a whole network in float32
MAX_TOLERANCE = 0.1
GATE = f"error / largest output, relative to diffusers in float32; {TOLERANCE:g} or twice diffusers' own error passes"
DeviceAndDtype = tuple[torch.device, torch.dtype]
CPU = torch.device("cpu")
WARM_UPS = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True)
class Row:
    """One row of the table. Lower is better in both units: seconds, or multiples of the file size.

    error: the largest difference from diffusers in float32 on the CPU, relative to its largest value; for loading, the
    share of tensors that are not bit-equal. oracle_error: the error of diffusers itself. gate: the allowed error.
    gflop: the work of minisd's call, 10^9 operations. peak: GFLOP/s of a convolution on this device in this dtype.
    """

    what: str
    device: str
    dtype: str
    unit: str
    diffusers: list[float]
    minisd: list[float]
    error: float
    oracle_error: float | None = None
    gate: float = 0.0
    gflop: float | None = None
    peak: float | None = None

    @property
    def share_of_peak(self) -> float | None:
        """The share of the convolution's rate that minisd reaches, if both are known."""
        return None if self.gflop is None or self.peak is None else self.gflop / median(self.minisd) / self.peak

    @property
    def passes(self) -> bool:
        """Whether the error is allowed; NaN is not."""
        return self.error <= self.gate

    @property
    def ratio(self) -> float:
        """The median of diffusers divided by the median of minisd."""
        return median(self.diffusers) / median(self.minisd)

    def cells(self) -> tuple[str, ...]:
        """What, dtype, diffusers, minisd, ratio, share of the peak, accuracy."""
        accuracy = "exact" if self.error == 0 else f"{self.error:.1e}"
        if self.oracle_error:
            accuracy += f" (diffusers {self.oracle_error:.1e})"
        if not self.passes:
            accuracy = f"**MISS** {accuracy}, allowed {self.gate:.1e}"
        what = self.what if self.device == "cpu" else f"{self.what}, {self.device}"
        numbers = _cell(self.diffusers, self.unit), _cell(self.minisd, self.unit), f"{self.ratio:.2f}"
        share = "" if self.share_of_peak is None else f"{self.share_of_peak:.0%}"
        return (what, self.dtype, *numbers, share, accuracy)

    def as_json(self) -> dict[str, Any]:
        """All measurements, for JSON; NaN and infinity become None."""
        medians = {f"{library}_median": median(getattr(self, library)) for library in IMPLEMENTATIONS}
        derived = {"ratio": self.ratio, "share_of_peak": self.share_of_peak, "passes": self.passes}
        values = asdict(self) | medians | derived
        bad = {k: None for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
        return values | bad


def _cell(values: list[float], unit: str) -> str:
    middle, low, high = median(values), min(values), max(values)
    if unit == "s" and middle < 1:
        return f"{1e3 * middle:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"
    return f"{middle:.2f} {unit} ({low:.2f} to {high:.2f})"


def measure_loading(
    components: Iterable[str], folder: Path, targets: list[DeviceAndDtype], repeats: int
) -> Iterator[Row]:
    """Rows of each component on the CPU, from a cached file: seconds to load it, seconds to read all of it, memory.

    Each measurement is a new process. A mapped file is read when its tensors are first used, hence the second row.
    """
    for component in components:
        for file in _files(component, folder):  # into the page cache
            with open(file, "rb") as opened:
                while opened.read(2**24):
                    pass
        for device, dtype in targets:
            if device.type == "cpu":
                yield from _loading_rows(component, folder, dtype, repeats)


def _loading_rows(component: str, folder: Path, dtype: torch.dtype, repeats: int) -> Iterator[Row]:
    runs: dict[str, list[Loading]] = {library: [] for library in IMPLEMENTATIONS}
    for _ in range(repeats):
        for library in IMPLEMENTATIONS:
            runs[library].append(measure_in_new_process(library, component, folder, dtype))
    expected, found = (Counter(runs[library][-1].checksums) for library in IMPLEMENTATIONS)
    error = ((expected - found) + (found - expected)).total() / (expected + found).total()

    def row(what: str, unit: str, value: Callable[[Loading], float]) -> Row:
        diffusers, minisd = ([value(each) for each in runs[library]] for library in IMPLEMENTATIONS)
        return Row(what, "cpu", _name(dtype), unit, diffusers, minisd, error)

    what = f"load the {component.replace('_', ' ')}"
    yield row(what, "s", lambda each: each.seconds)
    yield row(f"{what}, read all of it", "s", lambda each: each.seconds_read)
    if runs["minisd"][0].peak_bytes is not None:
        size = sum(file.stat().st_size for file in _files(component, folder))
        yield row(f"{what}, peak memory", "x file", lambda each: (each.peak_bytes or 0) / size)


@torch.no_grad()
def measure_workload(
    workload: Workload,
    inputs: tuple[Tensor, ...],
    folder: Path,
    targets: list[DeviceAndDtype],
    repeats: int,
    channels_last: bool = False,
    gflop: float | None = None,
    peaks: Mapping[tuple[str, str], float] | None = None,
) -> Iterator[Row]:
    """Rows of a workload, one for each target; channels_last: convert diffusers to this memory format, too.

    gflop: the work of minisd's call. peaks: GFLOP/s of a convolution, by type of device and name of dtype.
    """
    calls = {"diffusers": workload.diffusers, "minisd": workload.minisd}
    reference = workload.diffusers(loader("diffusers", workload.component)(folder, CPU, torch.float32), *inputs)
    for device, dtype in targets:
        gc.collect()
        moved = tuple(x.to(device, dtype if x.is_floating_point() else x.dtype) for x in inputs)
        networks = {library: loader(library, workload.component)(folder, device, dtype) for library in calls}
        if channels_last:
            networks["diffusers"].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        times: dict[str, list[float]] = {library: [] for library in calls}
        errors = {}
        for k in range(WARM_UPS[device.type] + repeats):
            for library, call in calls.items():
                seconds, output = timed(device, call, networks[library], *moved)
                if k >= WARM_UPS[device.type]:
                    times[library].append(seconds)
                errors[library] = _error(output, reference)
                del output
        del networks
        name, gate = _name(dtype), allowed_error(errors["diffusers"])
        seconds_of_both = times["diffusers"], times["minisd"]
        ours, theirs = errors["minisd"], errors["diffusers"]
        peak = None if peaks is None else peaks.get((device.type, name))
        yield Row(workload.what, device.type, name, "s", *seconds_of_both, ours, theirs, gate, gflop, peak)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def allowed_error(oracle_error: float) -> float:
    """The error that minisd may have: twice that of diffusers in the same dtype, in TOLERANCE..MAX_TOLERANCE."""
    return min(max(TOLERANCE, 2 * oracle_error), MAX_TOLERANCE)


def timed(device: torch.device, call: Callable[..., Tensor], *args: Any) -> tuple[float, Tensor]:
    """The seconds that a call takes, measured with CUDA events on a GPU, and its output."""
    if device.type == "cuda":
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        began.record()
        output = call(*args)
        ended.record()
        torch.cuda.synchronize(device)
        return began.elapsed_time(ended) / 1e3, output
    start = time.perf_counter()
    output = call(*args)
    return time.perf_counter() - start, output


@torch.no_grad()
def machine_peak(device: torch.device, dtype: torch.dtype, tiny: bool = False) -> dict[str, Any]:
    """GFLOP/s of a large matmul and of a 3x3 convolution of the UNet in channels_last: the best of four."""
    n = 256 if tiny else 8192 if device.type == "cuda" else 4096
    batch, width, side = (2, 32, 16) if tiny else (64 if device.type == "cuda" else 2, 320, 64)
    a = torch.full((n, n), 0.5, device=device, dtype=dtype)
    x = torch.full((batch, width, side, side), 0.5, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.full((width, width, 3, 3), 0.5, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def best(flop: float, call: Callable[[], Tensor]) -> float:
        return flop / min(timed(device, call)[0] for _ in range(4)) / 1e9

    return {
        "device": device.type,
        "dtype": _name(dtype),
        "matmul": best(2 * n**3, lambda: a @ a),
        "conv": best(2 * batch * side**2 * width**2 * 9, lambda: F.conv2d(x, w, padding=1)),
    }


def _error(output: Tensor, reference: Tensor) -> float:
    worst = (output.cpu().float() - reference).abs().max() / reference.abs().max()
    return float(worst)


def _files(component: str, folder: Path) -> list[Path]:
    return list((folder / component).glob("*.safetensors"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
