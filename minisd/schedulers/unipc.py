"""UniPC: a predictor like DPM-Solver++, corrected by the model's next call (Zhao et al. 2023)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.log_snr_space import LogSNRSpace, signal_and_noise


@dataclass(frozen=True)
class UniPC(LogSNRSpace):
    """Corrector, then predictor: a call repeats the last step with the image predicted at its end, then makes the next.

    Second order with B(h) = e^h - 1 ("bh2"), on predicted images; the first and the last step are of first order.
    """

    official_name: ClassVar[str] = "UniPCMultistepScheduler"
    fixed_values: ClassVar[dict[str, Any]] = {
        **LogSNRSpace.fixed_values,
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "solver_p": None,
        "sigma_min": None,
        "sigma_max": None,
    }

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        x0 = self.x0_at(grid, i, x, output)
        x0s: tuple[Tensor, ...] = ()  # predicted images of the calls before, newest first
        if memory is not None:
            x0s, x_before = memory
            x = self._move(grid, i - 1, x_before, x0s, corrected_by=x0)
        x0s = (x0.clone(), *x0s)[:2]
        return Step(self._move(grid, i, x, x0s), x0, (x0s, x.clone()))

    def _move(
        self, grid: Grid, i: int, x: Tensor, x0s: tuple[Tensor, ...], corrected_by: Tensor | None = None
    ) -> Tensor:
        """x from level i to i + 1, by the images predicted at i, i - 1, ..., and at i + 1 where it is known."""
        here, there = signal_and_noise(grid.sigmas[i]), signal_and_noise(grid.sigmas[i + 1])
        h = there.half_log_snr - here.half_log_snr
        growth = -math.expm1(-h)  # 1 - e^-h
        x0, *before = x0s
        # (r, difference) of the other predictions: their distance from here in steps, and from x0
        others: list[tuple[float, Tensor]] = []
        if before and math.isfinite(h):
            r = (signal_and_noise(grid.sigmas[i - 1]).half_log_snr - here.half_log_snr) / h
            others.append((r, before[0] - x0))
        if corrected_by is not None:
            others.append((1.0, corrected_by - x0))
        moved = there.sigma / here.sigma * x + there.alpha * growth * x0
        for (r, difference), weight in zip(others, _weights([r for r, _ in others], h), strict=True):
            moved = moved + there.alpha * growth * weight / r * difference
        return moved


def _weights(rs: list[float], h: float) -> list[float]:
    """The weights of difference / r: the solution of equation 5 of the paper; a single difference has weight 1/2."""
    if len(rs) < 2:
        return [0.5] * len(rs)
    phi = math.expm1(-h)
    first = phi / -h - 1
    second = first / -h - 1 / 2
    return np.linalg.solve([[1.0, 1.0], rs], [first / phi, 2 * second / phi]).tolist()
