"""DPM-Solver++ (2M): second order by the last two predicted pictures, and its stochastic form (Lu et al. 2022)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.log_snr_space import LogSNRSpace, level

ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")


@dataclass(frozen=True)
class DPMSolverMultistep(LogSNRSpace):
    """Extrapolates the last two predicted pictures to the middle of the step; the first and the last step use one.

    algorithm_type: "dpmsolver++", or "sde-dpmsolver++", which replaces part of the noise by fresh one at each step.
    """

    algorithm_type: str = "dpmsolver++"

    official_name: ClassVar[str] = "DPMSolverMultistepScheduler"
    refused: ClassVar[dict[str, Any]] = {
        **LogSNRSpace.refused,
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "lambda_min_clipped": -math.inf,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm_type not in ALGORITHMS:
            raise InputError(f"algorithm_type is {self.algorithm_type!r}, expected one of {', '.join(ALGORITHMS)}.")

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        here, there = level(grid.sigmas[i]), level(grid.sigmas[i + 1])
        h = there.log_snr - here.log_snr
        x0 = self.x0_at(grid, i, x, output)
        estimate = x0
        if memory is not None and math.isfinite(h):
            (before,) = memory
            r = (here.log_snr - level(grid.sigmas[i - 1]).log_snr) / h
            estimate = x0 + (x0 - before) / (2 * r)
        # the ODE keeps e^-h of the signal-to-noise ratio's root; the SDE its square, and refills with fresh noise
        sde = self.algorithm_type == "sde-dpmsolver++"
        kept = math.exp(-2 * h if sde else -h)
        x_prev = there.sigma / here.sigma * (math.exp(-h) if sde else 1) * x + there.alpha * (1 - kept) * estimate
        if sde and there.sigma > 0:
            x_prev = x_prev + there.sigma * math.sqrt(1 - kept) * draw()
        return Step(x_prev, x0, (x0.clone(),))
