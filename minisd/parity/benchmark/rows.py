"""A row of the table of `minisd bench`: the measurements of both libraries, and the accuracy gate."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minisd.parity.benchmark.families import FamilyConfigs
from minisd.parity.benchmark.profile import Share
from minisd.parity.benchmark.workloads import TOLERANCE

MAX_TOLERANCE = 0.1
SMALLEST = 1e-30  # a reference that is zero everywhere
HEADER = ("what", "dtype", "diffusers", "diffusers, tuned", "minisd", "ratio", "tuned ratio", "of peak", "accuracy")
WIDTHS = (41, 8, 29, 29, 29, 5, 11, 7, 0)


class Setup(NamedTuple):
    """What all rows of a run have in common.

    clock: one of timing.CLOCKS. rates: GFLOP/s of a convolution by type of device and name of dtype.
    asked: the names of all rows of the run.
    """

    configs: FamilyConfigs
    size: int
    folder: Path
    targets: list[tuple[torch.device, torch.dtype]]
    repeats: int
    clock: str
    rates: Mapping[tuple[str, str], float]
    asked: Sequence[str] = ()

    @property
    def cpu_dtypes(self) -> list[torch.dtype]:
        """The dtypes to measure on the CPU."""
        return [dtype for device, dtype in self.targets if device.type == "cpu"]


Measure = Callable[[Setup], Iterator["Row"]]


@dataclass(frozen=True)
class Row:
    """One row of the table. Lower is better in every unit: seconds, mebibytes, multiples of the file size.

    error: the largest difference from diffusers in float32 on the CPU, relative to its largest value; for loading, the
    share of tensors that are not bit-equal. oracle_error: the error of diffusers itself. gate: the allowed error.
    tuned: diffusers with its documented settings for speed, where they matter. gflop: the work of minisd's call, 10^9
    operations. peak: GFLOP/s of a convolution on this device in this dtype. profile: minisd's operations, on the CPU.
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
    tuned: list[float] | None = None
    gflop: float | None = None
    peak: float | None = None
    profile: tuple[Share, ...] = ()

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
        return _ratio(self.diffusers, self.minisd)

    @property
    def tuned_ratio(self) -> float | None:
        """The same for tuned diffusers, where it was measured."""
        return None if self.tuned is None else _ratio(self.tuned, self.minisd)

    def cells(self) -> tuple[str, ...]:
        """The cells under HEADER."""
        accuracy = "exact" if self.error == 0 else f"{self.error:.1e}"
        if self.oracle_error:
            accuracy += f" (diffusers {self.oracle_error:.1e})"
        if not self.passes:
            accuracy = f"**MISS** {accuracy}, allowed {self.gate:.1e}"
        what = self.what if self.device == "cpu" else f"{self.what}, {self.device}"
        measured = (_cell(values, self.unit) for values in (self.diffusers, self.tuned, self.minisd))
        ratios = ("" if ratio is None else f"{ratio:.2f}" for ratio in (self.ratio, self.tuned_ratio))
        share = "" if self.share_of_peak is None else f"{self.share_of_peak:.0%}"
        return (what, self.dtype, *measured, *ratios, share, accuracy)

    def as_json(self) -> dict[str, Any]:
        """All measurements, for JSON; NaN and infinity become None."""
        medians = {f"{name}_median": median(getattr(self, name) or [math.nan]) for name in ("diffusers", "minisd")}
        derived = {name: getattr(self, name) for name in ("ratio", "tuned_ratio", "share_of_peak", "passes")}
        values = asdict(self) | medians | derived
        bad = {k: None for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
        return values | bad


def line(cells: tuple[str, ...]) -> str:
    """A line of a Markdown table, whose columns are aligned on a screen, too."""
    return "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + " |"


def allowed_error(oracle_error: float, tolerance: float = TOLERANCE) -> float:
    """The error that minisd may have: twice that of diffusers in the same dtype, in tolerance..MAX_TOLERANCE."""
    return min(max(tolerance, 2 * oracle_error), MAX_TOLERANCE)


def error(outputs: tuple[Tensor, ...], references: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest value of its reference."""
    parts = [
        float((output.cpu().float() - reference).abs().max()) / max(float(reference.abs().max()), SMALLEST)
        for output, reference in zip(outputs, references, strict=True)
    ]
    return math.nan if any(map(math.isnan, parts)) else max(parts)


def name_of(dtype: torch.dtype) -> str:
    """Such as "float32"."""
    return str(dtype).removeprefix("torch.")


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return median(theirs) / median(ours) if median(ours) else math.inf


def _cell(values: list[float] | None, unit: str) -> str:
    if values is None:
        return ""
    middle, low, high = median(values), min(values), max(values)
    if len(values) == 1 and unit != "s":
        return f"{middle:.2f} {unit}"
    if unit == "s" and middle < 1:
        return f"{1e3 * middle:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"
    return f"{middle:.2f} {unit} ({low:.2f} to {high:.2f})"
