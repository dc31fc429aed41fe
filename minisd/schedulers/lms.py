"""LMS: linear multistep over the noise level sigma, Adams-Bashforth on an uneven grid (k-diffusion)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step
from minisd.schedulers.spacing import karras_sigmas, sigmas_at, timesteps_of

ORDER = 4


def lms_coefficients(sigmas: tuple[float, ...], i: int, order: int) -> list[float]:
    """Weights of the derivatives at calls i, i-1, ... (`order` of them), from sigmas[i] to sigmas[i+1].

    Each is the integral over the step of a Lagrange polynomial of degree order - 1 <= 3, for which Gauss's
    quadrature in two points is exact.
    """
    middle, half = (sigmas[i] + sigmas[i + 1]) / 2, (sigmas[i + 1] - sigmas[i]) / 2
    knots = [sigmas[i - k] for k in range(order)]

    def lagrange(k: int, sigma: float) -> float:
        return math.prod((sigma - other) / (knots[k] - other) for j, other in enumerate(knots) if j != k)

    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [half * sum(lagrange(k, sigma) for sigma in points) for k in range(order)]


@dataclass(frozen=True)
class LMS(Scheduler):
    """Integrates dx/dsigma = eps in sigma space, x = x_0 + sigma eps, through the last four eps.

    use_karras_sigmas takes the noise levels of Karras et al. 2022 between the ends of the spacing.
    """

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False

    official_name: ClassVar[str] = "LMSDiscreteScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {"timestep_spacing": "linspace"}
    refused: ClassVar[dict[str, Any]] = {"use_exponential_sigmas": False, "use_beta_sigmas": False}

    def grid(self, n: int, start: int = 0) -> Grid:
        """As every sampler, with fractional timesteps (float32) and the noise levels that belong to them."""
        table = self.schedule.sigmas.numpy()
        times = self._spaced(n, start)
        sigmas = sigmas_at(times, table)
        if self.use_karras_sigmas:
            sigmas = karras_sigmas(sigmas[0], sigmas[-1], n)
            times = timesteps_of(sigmas, table)
        sigma_max = sigmas[0]
        init_noise_sigma = math.hypot(sigma_max, 1) if self.timestep_spacing == "leading" else sigma_max
        return Grid(
            torch.tensor(times[start:], dtype=torch.float32),
            sigmas=(*sigmas[start:].tolist(), 0.0),
            init_noise_sigma=float(init_noise_sigma),
        )

    def scale_input(self, grid: Grid, i: int, x: Tensor) -> Tensor:
        """x / sqrt(sigma^2 + 1): the model knows x with variance one."""
        return x / math.hypot(grid.sigmas[i], 1)

    def add_noise(self, grid: Grid, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """x0 + sigma noise, at call i of the run."""
        return x0 + grid.sigmas[i] * noise

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        sigma = grid.sigmas[i]
        x0, eps = self.schedule.x0_and_eps(self.scale_input(grid, i, x), output, alpha_bar=1 / (1 + sigma**2))
        slopes = (eps.clone(), *(memory or ()))[:ORDER]  # a clone: eps may be the caller's own buffer
        weights = lms_coefficients(grid.sigmas, i, len(slopes))
        x_prev = x + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
        return Step(x_prev, x0, slopes)
