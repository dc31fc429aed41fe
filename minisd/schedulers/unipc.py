"""UniPC: DPM-Solver++'s step as predictor, corrected afterwards by the model's next call (Zhao et al. 2023)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.log_snr_space import LogSNRSpace, level


@dataclass(frozen=True)
class UniPC(LogSNRSpace):
    """Each call first does the step before once more, now that the picture is predicted at its end too, then goes on.

    Second order with B(h) = e^h - 1 ("bh2"), for the predicted picture; the first and the last step have order one.
    """

    official_name: ClassVar[str] = "UniPCMultistepScheduler"
    refused: ClassVar[dict[str, Any]] = {
        **LogSNRSpace.refused,
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "solver_p": None,
        "sigma_min": None,
        "sigma_max": None,
    }

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        x0 = self.x0_at(grid, i, x, output)
        pictures: tuple[Tensor, ...] = ()  # predicted at the calls before, newest first
        if memory is not None:
            pictures, x_before = memory
            x = self._move(grid, i - 1, x_before, pictures, corrected_by=x0)
        pictures = (x0.clone(), *pictures)[:2]
        return Step(self._move(grid, i, x, pictures), x0, (pictures, x.clone()))

    def _move(
        self, grid: Grid, i: int, x: Tensor, pictures: tuple[Tensor, ...], corrected_by: Tensor | None = None
    ) -> Tensor:
        """x from level i to i + 1 by the predicted pictures at i, i - 1, ..., and at i + 1 if it is known."""
        here, there = level(grid.sigmas[i]), level(grid.sigmas[i + 1])
        h = there.log_snr - here.log_snr
        growth = -math.expm1(-h)  # 1 - e^-h
        x0, *before = pictures
        # places of the other predictions, in steps from here, and how much they differ from the one here
        others: list[tuple[float, Tensor]] = []
        if before and math.isfinite(h):
            r = (level(grid.sigmas[i - 1]).log_snr - here.log_snr) / h
            others.append((r, before[0] - x0))
        if corrected_by is not None:
            others.append((1.0, corrected_by - x0))
        moved = there.sigma / here.sigma * x + there.alpha * growth * x0
        for (place, difference), weight in zip(others, _weights([r for r, _ in others], h), strict=True):
            moved = moved + there.alpha * growth * weight / place * difference
        return moved


def _weights(places: list[float], h: float) -> list[float]:
    """Of the differences, divided by their places: the solution of equation 5 there; one alone gets a half."""
    if len(places) < 2:
        return [0.5] * len(places)
    phi = math.expm1(-h)
    first = phi / -h - 1
    second = first / -h - 1 / 2
    return np.linalg.solve([[1.0, 1.0], places], [first / phi, 2 * second / phi]).tolist()
