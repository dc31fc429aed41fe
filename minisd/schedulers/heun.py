"""Heun's method over the noise level sigma: second order, two calls a step (Karras et al. 2022, algorithm 1)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.sigma_space import SigmaSpace

# A step from above this noise level (zero terminal SNR) is Euler's alone: it is so long that a small error of the mean
# slope breaks the image.
PURE_NOISE = 1000.0


@dataclass(frozen=True)
class Heun(SigmaSpace):
    """Euler's step, then the same step with the mean of the slopes at both ends.

    Algorithm 1 of the paper with t = sigma; D is the predicted clean image, so d and d' are the predicted eps:

        for i in 0 .. N - 1:
            d_i = (x_i - D(x_i; t_i)) / t_i
            x_{i+1} = x_i + (t_{i+1} - t_i) d_i                         Euler's step
            if t_{i+1} > 0:
                d'_i = (x_{i+1} - D(x_{i+1}; t_{i+1})) / t_{i+1}
                x_{i+1} = x_i + (t_{i+1} - t_i) (d_i + d'_i) / 2        the step once more, from x_i

    Even calls are the first two lines, odd calls the last two, so N steps are 2 N - 1 calls. Memory: x_i and d_i.
    """

    official_name: ClassVar[str] = "HeunDiscreteScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {
        **SigmaSpace.official_defaults,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    fixed_values: ClassVar[dict[str, Any]] = {**SigmaSpace.fixed_values, "clip_sample": False}
    neutral: ClassVar[tuple[str, ...]] = ("clip_sample_range",)  # only with clip_sample

    def grid(self, n: int, start: int = 0) -> Grid:
        """As in sigma space, but all levels except the first come twice: as the end of a step, and as a start."""
        steps = super().grid(n, start)
        timesteps = steps.timesteps.repeat_interleave(2)[1:]
        sigmas = [sigma for sigma in steps.sigmas for _ in range(2)]
        return replace(steps, timesteps=timesteps, sigmas=tuple(sigmas[1:-1]))

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        if i % 2 == 0:
            x0, d = self.x0_and_slope(grid, i, x, output)
            return Step(x + (grid.sigmas[i + 1] - grid.sigmas[i]) * d, x0, (x.clone(), d.clone()))
        if memory is None:
            raise InputError(f"call {i} is within a step and memory is None; start a run at call 0 of grid(n, start).")
        x0, d_prime = self.x0_and_slope(grid, i, x, output)
        t, t_next = grid.sigmas[i - 1], grid.sigmas[i]
        if t > PURE_NOISE:
            return Step(x, x0, None)
        x_start, d = memory
        return Step(x_start + (t_next - t) * (d + d_prime) / 2, x0, None)
