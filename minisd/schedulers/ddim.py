"""DDIM: deterministic at eta 0, with the noise of DDPM at eta 1 (Song et al. 2021)."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from minisd._internal.config_fields import Range
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step


@dataclass(frozen=True)
class DDIM(Scheduler):
    """Predicts x_0 and eps, and mixes them again at the next noise level.

    eta, 0 to 1: the share of new noise. clip_sample limits the predicted x_0 to +-clip_sample_range.
    set_alpha_to_one: the last step ends at the clean image, else at the noise level of timestep 0.
    """

    eta: Annotated[float, Range(0, 1)] = 0.0
    clip_sample: bool = False
    clip_sample_range: Annotated[float, Range(1e-3, 1000)] = 1.0
    set_alpha_to_one: bool = False

    official_name: ClassVar[str] = "DDIMScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {"clip_sample": True, "set_alpha_to_one": True}
    fixed_values: ClassVar[dict[str, Any]] = {"thresholding": False}

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        alpha_bar = self.schedule.alpha_bar(grid.source[i])
        clean = 1.0 if self.set_alpha_to_one else self.schedule.alpha_bar(0)
        alpha_bar_prev = self.schedule.alpha_bar(grid.previous[i], clean)
        x0, eps = self.schedule.x0_and_eps(x, output, alpha_bar)
        if self.clip_sample:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        # equation 16, then 12
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        sigma = self.eta * math.sqrt(variance)
        rest = max(0.0, 1 - alpha_bar_prev - sigma**2)  # 0 at eta 1 from pure noise, and rounded below it
        x_prev = math.sqrt(alpha_bar_prev) * x0 + math.sqrt(rest) * eps
        if self.eta > 0:
            x_prev = x_prev + sigma * draw()
        return Step(x_prev, x0, None)

    def to_config(self) -> dict[str, Any]:
        """As for every sampler; eta only if it is not 0, because in the official class it is an argument of step."""
        config = super().to_config()
        if self.eta == 0:
            del config["eta"]
        return config
