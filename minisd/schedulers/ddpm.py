"""DDPM: the stochastic sampler that reverses the noising of the training (Ho et al. 2020)."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from minisd._internal.config_fields import Range
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step


@dataclass(frozen=True)
class DDPM(Scheduler):
    """Draws x_{t-1} from the posterior q(x_{t-1} | x_t, x_0) at the predicted x_0; no noise at t = 0.

    clip_sample limits the predicted x_0 to +-clip_sample_range (for pixels; latents have no limits).
    """

    clip_sample: bool = False
    clip_sample_range: Annotated[float, Range(1e-3, 1000)] = 1.0

    official_name: ClassVar[str] = "DDPMScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {"clip_sample": True}
    fixed_values: ClassVar[dict[str, Any]] = {"variance_type": "fixed_small", "thresholding": False}

    def grid(self, n: int, start: int = 0) -> Grid:
        """As for every sampler, but each step leads to the next timestep of the run, the last to the clean image."""
        grid = super().grid(n, start)
        return replace(grid, previous=(*grid.source[1:], -1))

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        t = grid.source[i]
        alpha_bar, alpha_bar_prev = self.schedule.alpha_bar(t), self.schedule.alpha_bar(grid.previous[i])
        alpha = alpha_bar / alpha_bar_prev
        x0, _ = self.schedule.x0_and_eps(x, output, alpha_bar)
        if self.clip_sample:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        # the mean and the variance of the posterior, equations 6 and 7
        x0_weight = math.sqrt(alpha_bar_prev) * (1 - alpha) / (1 - alpha_bar)
        x_weight = math.sqrt(alpha) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        x_prev = x0_weight * x0 + x_weight * x
        if t > 0:
            variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha)
            x_prev = x_prev + math.sqrt(max(variance, 1e-20)) * draw()
        return Step(x_prev, x0, None)
