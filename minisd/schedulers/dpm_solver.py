"""DPM-Solver++ (2M): second order from the last two predicted images; and its stochastic form (Lu et al. 2022)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.log_snr_space import LogSNRSpace, signal_and_noise

ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")


@dataclass(frozen=True)
class DPMSolverMultistep(LogSNRSpace):
    """Extrapolates the last two predicted images to the middle of the step; the first and the last step use one.

    algorithm_type: "dpmsolver++"; or "sde-dpmsolver++", which replaces part of the noise by new noise at each step.
    """

    algorithm_type: str = "dpmsolver++"

    official_name: ClassVar[str] = "DPMSolverMultistepScheduler"
    fixed_values: ClassVar[dict[str, Any]] = {
        **LogSNRSpace.fixed_values,
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "lambda_min_clipped": -math.inf,
    }
    neutral: ClassVar[tuple[str, ...]] = (*LogSNRSpace.neutral, "variance_type")  # of models that predict it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm_type not in ALGORITHMS:
            raise InputError(f"algorithm_type is {self.algorithm_type!r}, expected one of {', '.join(ALGORITHMS)}.")

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        here, there = signal_and_noise(grid.sigmas[i]), signal_and_noise(grid.sigmas[i + 1])
        h = there.half_log_snr - here.half_log_snr
        x0 = self.x0_at(grid, i, x, output)
        estimate = x0
        if memory is not None and math.isfinite(h):
            (x0_before,) = memory
            r = (here.half_log_snr - signal_and_noise(grid.sigmas[i - 1]).half_log_snr) / h
            estimate = x0 + (x0 - x0_before) / (2 * r)
        # ODE: x' = sigma' / sigma x + alpha' (1 - e^-h) x0
        # SDE: x' = sigma' / sigma e^-h x + alpha' (1 - e^-2h) x0 + sigma' sqrt(1 - e^-2h) noise
        sde = self.algorithm_type == "sde-dpmsolver++"
        kept = math.exp(-2 * h if sde else -h)
        x_prev = there.sigma / here.sigma * (math.exp(-h) if sde else 1) * x + there.alpha * (1 - kept) * estimate
        if sde and there.sigma > 0:
            x_prev = x_prev + there.sigma * math.sqrt(1 - kept) * draw()
        return Step(x_prev, x0, (x0.clone(),))
