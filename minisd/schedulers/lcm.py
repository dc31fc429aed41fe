"""LCM: the sampler of latent consistency models, which jump from any noise level to the picture (Luo et al. 2023)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step
from minisd.schedulers.spacing import Floats


@dataclass(frozen=True)
class LCM(Scheduler):
    """Predicts the picture and noises it again, to the next level; the last step adds no noise. 2 to 8 steps.

    The levels are among the `original_inference_steps` of the run that was distilled. timestep_scaling: how fast the
    consistency function turns from x itself, at t = 0, to what the model says.
    """

    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    official_name: ClassVar[str] = "LCMScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    refused: ClassVar[dict[str, Any]] = {"thresholding": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        original = self.original_inference_steps
        if not isinstance(original, int) or isinstance(original, bool) or original < 1:
            raise InputError(f"original_inference_steps is {original!r}, expected a whole number above 0; LCMs use 50.")

    def grid(self, n: int, start: int = 0) -> Grid:
        """As every sampler, but each step goes to the next timestep of the run.

        Raises InputError also if n is above original_inference_steps.
        """
        times = self._spaced(n, start)[start:].astype(int).tolist()
        return Grid(torch.tensor(times), source=tuple(times), previous=(*times[1:], -1))

    def _spacing(self, n: int) -> Floats:
        original, total = self.original_inference_steps, self.schedule.num_train_timesteps
        if n > original:
            raise InputError(f"num_inference_steps is {n}, but an LCM was distilled from {original} steps; try 4.")
        times = np.arange(original, 0, -1.0) * (total // original) - 1
        return times[np.linspace(0, original, n, endpoint=False).astype(int)]

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        t, after = grid.source[i], grid.previous[i]
        x0, _ = self.schedule.x0_and_eps(x, output, self.schedule.alpha_bar(t))
        if self.clip_sample:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        scaled, data = t * self.timestep_scaling, 0.5  # data: the pictures' deviation (Song et al. 2023, appendix C)
        out, skip = scaled / math.hypot(scaled, data), data**2 / (scaled**2 + data**2)
        x0 = out * x0 + skip * x
        if after < 0:
            return Step(x0, x0, None)
        alpha_bar = self.schedule.alpha_bar(after)
        return Step(math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * draw(), x0, None)
