"""Euler's method over the noise level sigma, and its ancestral form, which adds noise (k-diffusion)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.sigma_space import SigmaSpace


@dataclass(frozen=True)
class Euler(SigmaSpace):
    """One straight step along dx/dsigma = eps to the next noise level: first order, one model call a step."""

    official_name: ClassVar[str] = "EulerDiscreteScheduler"

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        x0, slope = self.x0_and_slope(grid, i, x, output)
        return Step(x + (grid.sigmas[i + 1] - grid.sigmas[i]) * slope, x0, None)


@dataclass(frozen=True)
class EulerAncestral(SigmaSpace):
    """Euler's method to a level below the next one, then new noise up to it: as much as DDPM adds.

    use_karras_sigmas works as in k-diffusion; the official class has no such key.
    """

    official_name: ClassVar[str] = "EulerAncestralDiscreteScheduler"

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        sigma, after = grid.sigmas[i], grid.sigmas[i + 1]
        up = after * math.sqrt(sigma**2 - after**2) / sigma
        down = after**2 / sigma  # down^2 + up^2 = after^2
        x0, slope = self.x0_and_slope(grid, i, x, output)
        x_prev = x + (down - sigma) * slope
        return Step(x_prev + up * draw() if up > 0 else x_prev, x0, None)
