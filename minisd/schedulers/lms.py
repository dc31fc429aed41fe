"""LMS: linear multistep over the noise level sigma, Adams-Bashforth on an uneven grid (k-diffusion)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from minisd.schedulers.base import Draw, Grid, Memory, Step
from minisd.schedulers.sigma_space import SigmaSpace

ORDER = 4


def lms_coefficients(sigmas: tuple[float, ...], i: int, order: int) -> list[float]:
    """The weights of the `order` slopes at calls i, i - 1, ... in the step from sigmas[i] to sigmas[i + 1].

    Each weight is the integral over the step of a Lagrange polynomial of degree order - 1 <= 3, for which Gauss
    quadrature with two points is exact.
    """
    middle, half = (sigmas[i] + sigmas[i + 1]) / 2, (sigmas[i + 1] - sigmas[i]) / 2
    knots = [sigmas[i - k] for k in range(order)]

    def lagrange(k: int, sigma: float) -> float:
        return math.prod((sigma - other) / (knots[k] - other) for j, other in enumerate(knots) if j != k)

    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [half * sum(lagrange(k, sigma) for sigma in points) for k in range(order)]


@dataclass(frozen=True)
class LMS(SigmaSpace):
    """Integrates dx/dsigma = eps: the polynomial through the last four eps.

    lower_order_start: a run that starts later, as in image to image, begins with order 1, as a run from noise does.
    False: as in the reference, it weighs its first slopes as if the calls before it had slopes, which count as zero.
    """

    lower_order_start: bool = True

    official_name: ClassVar[str] = "LMSDiscreteScheduler"

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        x0, slope = self.x0_and_slope(grid, i, x, output)
        slopes = (slope.clone(), *(memory or ()))[:ORDER]  # a clone, because the caller may reuse its buffer
        sigmas, call = (*grid.earlier_sigmas, *grid.sigmas), len(grid.earlier_sigmas) + i
        order = len(slopes) if self.lower_order_start else min(call + 1, ORDER)
        weights = lms_coefficients(sigmas, call, order)
        x_prev = x + sum(weight * slope for weight, slope in zip(weights, slopes, strict=False))
        return Step(x_prev, x0, slopes)
