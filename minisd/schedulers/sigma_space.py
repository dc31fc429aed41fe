"""Sigma space: x = x_0 + sigma eps. Sampling integrates dx/dsigma = eps (Karras et al. 2022; k-diffusion)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from minisd.schedulers.base import Grid, Scheduler
from minisd.schedulers.spacing import karras_sigmas, sigmas_at, timesteps_of


@dataclass(frozen=True)
class SigmaSpace(Scheduler):
    """What the samplers in sigma space have in common.

    use_karras_sigmas: the noise levels of Karras et al. 2022, between the first and the last level of the spacing.
    """

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False

    official_defaults: ClassVar[dict[str, Any]] = {"timestep_spacing": "linspace"}
    fixed_values: ClassVar[dict[str, Any]] = {
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
    }

    def grid(self, n: int, start: int = 0) -> Grid:
        """As for every sampler, with fractional timesteps (float32) and their noise levels."""
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
            earlier_sigmas=tuple(sigmas[:start].tolist()),
            init_noise_sigma=float(init_noise_sigma),
        )

    def scale_input(self, grid: Grid, i: int, x: Tensor) -> Tensor:
        """x / sqrt(sigma^2 + 1), which has variance one, as in training."""
        return x / math.hypot(grid.sigmas[i], 1)

    def add_noise(self, grid: Grid, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """x0 + sigma noise, before call i of the run."""
        return x0 + grid.sigmas[i] * noise

    def _sigma(self, grid: Grid, i: int) -> float:
        return grid.sigmas[i]

    def x0_and_slope(self, grid: Grid, i: int, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted image x_0, and the slope dx/dsigma = eps, at call i."""
        alpha_bar = 1 / (1 + grid.sigmas[i] ** 2)
        return self.schedule.x0_and_eps(self.scale_input(grid, i, x), output, alpha_bar)
