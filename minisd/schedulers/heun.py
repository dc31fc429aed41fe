"""Heun's method over the noise level sigma: second order, two calls a step (Karras et al. 2022, algorithm 1)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.sigma_space import SigmaSpace

PURE_NOISE = 1000.0  # from such a level (zero terminal SNR) the slope hardly changes, but times the step far too much


@dataclass(frozen=True)
class Heun(SigmaSpace):
    """A step by Euler, then again with the mean of the slopes at both of its ends; the last step is Euler's alone.

    So n steps are 2 n - 1 model calls: all but the first noise level are visited twice.
    """

    official_name: ClassVar[str] = "HeunDiscreteScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {
        **SigmaSpace.official_defaults,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    refused: ClassVar[dict[str, Any]] = {**SigmaSpace.refused, "clip_sample": False}

    def grid(self, n: int, start: int = 0) -> Grid:
        """As in sigma space; odd calls look at the far end of the step that the call before took."""
        steps = super().grid(n, start)
        timesteps = steps.timesteps.repeat_interleave(2)[1:]
        sigmas = [sigma for sigma in steps.sigmas for _ in range(2)]
        return replace(steps, timesteps=timesteps, sigmas=tuple(sigmas[1:-1]))

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        x0, slope = self.x0_and_slope(grid, i, x, output)
        if i % 2 == 0:
            return Step(x + (grid.sigmas[i + 1] - grid.sigmas[i]) * slope, x0, (x.clone(), slope.clone()))
        if memory is None:
            raise InputError(f"call {i} is within a step, and a run begins with one: use call 0 of grid(n, start=...).")
        if grid.sigmas[i - 1] > PURE_NOISE:
            return Step(x, x0, None)
        x_start, first = memory
        return Step(x_start + (grid.sigmas[i] - grid.sigmas[i - 1]) * (first + slope) / 2, x0, None)
