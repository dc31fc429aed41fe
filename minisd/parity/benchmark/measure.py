"""How `minisd bench` measures: the two sides in turn, so that a busy moment of the machine meets both."""

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.parity.benchmark.load import Loading, measure_apart
from minisd.parity.benchmark.sides import SIDES, Scene, loader

TOLERANCE = 1e-4  # of a whole network in float32
LOOSEST = 0.1
GATE = f"error / largest output, both against diffusers in float32; {TOLERANCE:g} or twice diffusers' own passes"
Place = tuple[torch.device, torch.dtype]
CPU = torch.device("cpu")
WARM_UPS = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True)
class Row:
    """One line of the table. Less is better in all units: seconds, or multiples of the file's size.

    error: the largest, against diffusers in float32 on the CPU, relative to the largest value there; when
    loading, the share of tensors that are not the same to the bit. oracle_error: diffusers' own.
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

    @property
    def passes(self) -> bool:
        """Is minisd as right as it must be?  NaN is not."""
        return self.error <= self.gate

    @property
    def ratio(self) -> float:
        """How many times better minisd is, by the medians."""
        return median(self.diffusers) / median(self.minisd)

    def cells(self) -> tuple[str, ...]:
        """What, dtype, diffusers, minisd, ratio, accuracy."""
        accuracy = "exact" if self.error == 0 else f"{self.error:.1e}"
        if self.oracle_error:
            accuracy += f" (diffusers {self.oracle_error:.1e})"
        if not self.passes:
            accuracy = f"**MISS** {accuracy}, allowed {self.gate:.1e}"
        what = self.what if self.device == "cpu" else f"{self.what}, {self.device}"
        return (
            what,
            self.dtype,
            _cell(self.diffusers, self.unit),
            _cell(self.minisd, self.unit),
            f"{self.ratio:.2f}",
            accuracy,
        )

    def as_json(self) -> dict[str, Any]:
        """All measurements; an error that is no number is null."""
        medians = {f"{side}_median": median(getattr(self, side)) for side in SIDES}
        everything = asdict(self) | medians | {"ratio": self.ratio, "passes": self.passes}
        bad = {k: None for k, v in everything.items() if isinstance(v, float) and not math.isfinite(v)}
        return everything | bad


def _cell(values: list[float], unit: str) -> str:
    middle, low, high = median(values), min(values), max(values)
    if unit == "s" and middle < 1:
        return f"{1e3 * middle:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"
    return f"{middle:.2f} {unit} ({low:.2f} to {high:.2f})"


def loading(components: Iterable[str], folder: Path, places: list[Place], repeats: int) -> Iterator[Row]:
    """Rows of each component on the CPU, from a warm file: seconds to load it, to have read it all; memory.

    Each measurement is a fresh process. A mapped file is read when it is first used: hence the second row.
    """
    for component in components:
        for file in _files(component, folder):  # into the page cache
            with open(file, "rb") as opened:
                while opened.read(2**24):
                    pass
        for device, dtype in places:
            if device.type == "cpu":
                yield from _loading(component, folder, dtype, repeats)


def _loading(component: str, folder: Path, dtype: torch.dtype, repeats: int) -> Iterator[Row]:
    runs: dict[str, list[Loading]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(measure_apart(side, component, folder, dtype))
    expected, found = (Counter(runs[side][-1].checksums) for side in SIDES)
    error = ((expected - found) + (found - expected)).total() / (expected + found).total()

    def row(what: str, unit: str, value: Callable[[Loading], float]) -> Row:
        theirs, ours = ([value(each) for each in runs[side]] for side in SIDES)
        return Row(what, "cpu", _name(dtype), unit, theirs, ours, error)

    what = f"load the {component.replace('_', ' ')}"
    yield row(what, "s", lambda each: each.seconds)
    yield row(f"{what}, read all of it", "s", lambda each: each.seconds_read)
    if runs["minisd"][0].peak_bytes is not None:
        size = sum(file.stat().st_size for file in _files(component, folder))
        yield row(f"{what}, peak memory", "x file", lambda each: (each.peak_bytes or 0) / size)


@torch.no_grad()
def compare(
    scene: Scene,
    inputs: tuple[Tensor, ...],
    folder: Path,
    places: list[Place],
    repeats: int,
    channels_last: bool = False,
) -> Iterator[Row]:
    """Rows of a scene, one for each (device, dtype); `channels_last`: diffusers in that format, too."""
    calls = {"diffusers": scene.diffusers, "minisd": scene.minisd}
    reference = scene.diffusers(loader("diffusers", scene.component)(folder, CPU, torch.float32), *inputs)
    for device, dtype in places:
        gc.collect()
        there = tuple(x.to(device, dtype if x.is_floating_point() else x.dtype) for x in inputs)
        networks = {side: loader(side, scene.component)(folder, device, dtype) for side in SIDES}
        if channels_last:
            networks["diffusers"].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        errors = {}
        for k in range(WARM_UPS[device.type] + repeats):
            for side in SIDES:
                seconds, output = timed(device, calls[side], networks[side], *there)
                if k >= WARM_UPS[device.type]:
                    times[side].append(seconds)
                errors[side] = _error(output, reference)
                del output
        del networks
        yield Row(
            scene.what,
            device.type,
            _name(dtype),
            "s",
            **times,
            error=errors["minisd"],
            oracle_error=errors["diffusers"],
            gate=allowed(errors["diffusers"]),
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()


def allowed(oracle_error: float) -> float:
    """The error that minisd may have, by diffusers' own in the same dtype; overflow excuses nothing."""
    return min(max(TOLERANCE, 2 * oracle_error), LOOSEST)


def timed(device: torch.device, call: Callable[..., Tensor], *args: Any) -> tuple[float, Tensor]:
    """Seconds that a call takes, by CUDA events on a GPU; and what it gives."""
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
    """GFLOP/s of a large matmul and of a 3x3 convolution of the UNet in channels_last: the best of a few."""
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
