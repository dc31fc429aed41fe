"""LCM: the sampler of latent consistency models, which predict the clean image in one call (Luo et al. 2023)."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from minisd._internal.config_fields import Range, Size, refuse
from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step
from minisd.schedulers.spacing import Floats


@dataclass(frozen=True)
class LCM(Scheduler):
    """Predicts the clean image and adds new noise, down to the next level; the last step adds none. Use 2 to 8 steps.

    original_inference_steps: the steps of the run from which the model was distilled; the levels are among them.
    timestep_scaling: how fast the consistency function changes from x itself, at t = 0, to the model's prediction.
    clip_sample limits the predicted x_0 to +-clip_sample_range.
    """

    original_inference_steps: Size = 50
    timestep_scaling: Annotated[float, Range(0, 1000)] = 10.0
    clip_sample: bool = False
    clip_sample_range: Annotated[float, Range(1e-3, 1000)] = 1.0

    official_name: ClassVar[str] = "LCMScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    fixed_values: ClassVar[dict[str, Any]] = {"thresholding": False}
    neutral: ClassVar[tuple[str, ...]] = (*Scheduler.neutral, "set_alpha_to_one")  # the last step adds no noise

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original_inference_steps > self.schedule.num_train_timesteps:
            steps = self.schedule.num_train_timesteps
            refuse(self, "original_inference_steps", f"at most num_train_timesteps, {steps}; LCMs use 50")

    def grid(self, n: int, start: int = 0) -> Grid:
        """As for every sampler, but each step leads to the next timestep of the run.

        Raises InputError also if n is above original_inference_steps.
        """
        times = self._spaced(n, start)[start:].astype(int).tolist()
        return Grid(torch.tensor(times), source=tuple(times), previous=(*times[1:], -1))

    def _spacing(self, n: int) -> Floats:
        original, total = self.original_inference_steps, self.schedule.num_train_timesteps
        if n > original:
            raise InputError(f"num_inference_steps is {n}, expected at most the {original} steps of the distillation.")
        times = np.arange(original, 0, -1.0) * (total // original) - 1
        return times[np.linspace(0, original, n, endpoint=False).astype(int)]

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        t, after = grid.source[i], grid.previous[i]
        x0, _ = self.schedule.x0_and_eps(x, output, self.schedule.alpha_bar(t))
        if self.clip_sample:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        # the consistency function; 0.5 is the standard deviation of the data (Song et al. 2023, appendix C)
        scaled, data = t * self.timestep_scaling, 0.5
        out, skip = scaled / math.hypot(scaled, data), data**2 / (scaled**2 + data**2)
        x0 = out * x0 + skip * x
        if after < 0:
            return Step(x0, x0, None)
        alpha_bar = self.schedule.alpha_bar(after)
        return Step(math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * draw(), x0, None)
