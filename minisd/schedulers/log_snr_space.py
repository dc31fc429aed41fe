"""Half the logarithm of the signal-to-noise ratio, lambda = ln(alpha / sigma): in it the linear part of the diffusion
ODE is solved exactly, and only the predicted picture has to be approximated (Lu et al. 2022).

    x_t = alpha_t x_0 + sigma_t eps,   alpha_t = sqrt(alpha_bar_t),   sigma_t = sqrt(1 - alpha_bar_t)
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from minisd.schedulers.base import Grid, Scheduler
from minisd.schedulers.spacing import Floats, karras_sigmas, sigmas_at, spaced_timesteps, timesteps_of


class Level(NamedTuple):
    """A noise level: signal and noise in x, and half the logarithm of their ratio squared; infinite when clean."""

    alpha: float
    sigma: float
    log_snr: float


def level(ratio: float) -> Level:
    """The level whose noise to signal ratio is `ratio`, 0 or more."""
    alpha = 1 / math.hypot(ratio, 1)
    return Level(alpha, ratio * alpha, -math.log(ratio) if ratio > 0 else math.inf)


@dataclass(frozen=True)
class LogSNRSpace(Scheduler):
    """What DPM-Solver++ and UniPC have in common: x as in DDIM, n levels of which the last is not yet clean.

    use_karras_sigmas takes the noise levels of Karras et al. 2022 between the ends of the training schedule.
    """

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False

    official_defaults: ClassVar[dict[str, Any]] = {"timestep_spacing": "linspace"}
    refused: ClassVar[dict[str, Any]] = {
        "solver_order": 2,
        "lower_order_final": True,
        "thresholding": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "final_sigmas_type": "zero",
    }

    def grid(self, n: int, start: int = 0) -> Grid:
        """As every sampler, with the noise to signal ratios `sigmas`, the last 0."""
        table = self.schedule.sigmas.numpy()
        times = self._spaced(n, start)
        if self.use_karras_sigmas:
            sigmas = karras_sigmas(table[-1], table[0], n)
            times = timesteps_of(sigmas, table).round()
        else:
            times = times.round()
            sigmas = sigmas_at(times, table)
        return Grid(torch.tensor(times[start:].astype(int)), sigmas=(*sigmas[start:].tolist(), 0.0))

    def _spacing(self, n: int) -> Floats:
        """These samplers leave out the last of n + 1 timesteps, from which the step to the clean picture is short."""
        total = self.schedule.num_train_timesteps
        if self.timestep_spacing == "trailing" or n == total:
            return super()._spacing(n)
        return spaced_timesteps(self.timestep_spacing, n + 1, total, self.steps_offset)[:-1]

    def add_noise(self, grid: Grid, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """alpha x0 + sigma noise, before call i of the run."""
        alpha, sigma, _ = level(grid.sigmas[i])
        return alpha * x0 + sigma * noise

    def x0_at(self, grid: Grid, i: int, x: Tensor, output: Tensor) -> Tensor:
        """The predicted picture at call i."""
        return self.schedule.x0_and_eps(x, output, level(grid.sigmas[i]).alpha ** 2)[0]
