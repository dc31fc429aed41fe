"""Half the logarithm of the signal-to-noise ratio, lambda = ln(alpha / sigma), as the variable of integration.

    x_t = alpha_t x_0 + sigma_t eps,   alpha_t = sqrt(alpha_bar_t),   sigma_t = sqrt(1 - alpha_bar_t)

In lambda the linear part of the diffusion ODE has an exact solution; only the predicted image is approximated
(Lu et al. 2022).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from minisd.schedulers.base import Grid, Scheduler
from minisd.schedulers.spacing import Floats, karras_sigmas, sigmas_at, spaced_timesteps, timesteps_of


class SignalAndNoise(NamedTuple):
    """The weights alpha of x_0 and sigma of eps in x, and lambda = ln(alpha / sigma), infinite for a clean image."""

    alpha: float
    sigma: float
    half_log_snr: float


def signal_and_noise(ratio: float) -> SignalAndNoise:
    """The weights at a ratio of noise to signal, 0 or more."""
    alpha = 1 / math.hypot(ratio, 1)
    return SignalAndNoise(alpha, ratio * alpha, -math.log(ratio) if ratio > 0 else math.inf)


@dataclass(frozen=True)
class LogSNRSpace(Scheduler):
    """What DPM-Solver++ and UniPC have in common: x as in DDIM, and n levels before the clean image.

    use_karras_sigmas: the noise levels of Karras et al. 2022, between the first and the last level of the training.
    """

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False

    official_defaults: ClassVar[dict[str, Any]] = {"timestep_spacing": "linspace"}
    fixed_values: ClassVar[dict[str, Any]] = {
        "solver_order": 2,
        "lower_order_final": True,
        "thresholding": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "final_sigmas_type": "zero",
    }
    neutral: ClassVar[tuple[str, ...]] = (
        *Scheduler.neutral,
        "flow_shift",  # this and the other two only with use_flow_sigmas
        "time_shift_type",
        "shift_terminal",
    )

    def grid(self, n: int, start: int = 0) -> Grid:
        """As for every sampler, with `sigmas`, the ratios of noise to signal, the last 0."""
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
        """The first n of n + 1 timesteps: from the last one, the step to the clean image would be very short."""
        total = self.schedule.num_train_timesteps
        if self.timestep_spacing == "trailing" or n == total:
            return super()._spacing(n)
        return spaced_timesteps(self.timestep_spacing, n + 1, total, self.steps_offset)[:-1]

    def add_noise(self, grid: Grid, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """alpha x0 + sigma noise, before call i of the run."""
        alpha, sigma, _ = signal_and_noise(grid.sigmas[i])
        return alpha * x0 + sigma * noise

    def _sigma(self, grid: Grid, i: int) -> float:
        return signal_and_noise(grid.sigmas[i]).sigma

    def x0_at(self, grid: Grid, i: int, x: Tensor, output: Tensor) -> Tensor:
        """The predicted image x_0 at call i."""
        return self.schedule.x0_and_eps(x, output, signal_and_noise(grid.sigmas[i]).alpha ** 2)[0]
