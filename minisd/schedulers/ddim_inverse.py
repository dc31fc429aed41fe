"""DDIM inversion: from an image to the noise from which DDIM draws it (Song et al. 2021, section 4.3)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step


@dataclass(frozen=True)
class DDIMInverse(Scheduler):
    """The steps of DDIM at eta 0 in reverse order, towards more noise.

    The interface is that of a sampler, but Scheduler.samplers does not list it: it draws no images.
    An inverse step calls the model with x at the less noisy end of the step, because x at the other end is unknown.
    refine: the number of further calls with the estimated x at the noisier end; each solves DDIM's step for x again
    (fixed-point iteration; Pan et al. 2023). So n steps are n (1 + refine) calls. set_alpha_to_one: see DDIM.
    """

    set_alpha_to_one: bool = False
    refine: int = 0

    official_name: ClassVar[str] = "DDIMInverseScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {"set_alpha_to_one": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine > 100:
            raise InputError(f"refine is {self.refine!r}, expected a whole number in 0..100; 2 is accurate.")
        if self.schedule.prediction_type == "sample":
            raise InputError(
                "the model predicts x0 (prediction_type 'sample'), expected 'epsilon' or 'v_prediction': no noise can "
                "be computed from a clean image and its x0."
            )

    def grid(self, n: int, start: int = 0) -> Grid:
        """The levels of DDIM's n steps in reverse: call i moves x from timestep previous[i] up to source[i]."""
        down = super().grid(n, start)
        calls = [k for k in reversed(range(len(down))) for _ in range(1 + self.refine)]
        source, previous = ([times[k] for k in calls] for times in (down.source, down.previous))
        return replace(down, timesteps=torch.tensor(source), source=tuple(source), previous=tuple(previous))

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        clean = 1.0 if self.set_alpha_to_one else self.schedule.alpha_bar(0)
        low, high = self.schedule.alpha_bar(grid.previous[i], clean), self.schedule.alpha_bar(grid.source[i])
        if i % (1 + self.refine) == 0:
            x0, eps = self.schedule.x0_and_eps(x, output, low)
            return Step(math.sqrt(high) * x0 + math.sqrt(1 - high) * eps, x0, (x.clone(),))
        if memory is None:
            raise InputError(f"call {i} is within a step and memory is None; start a run at call 0 of grid(n, start).")
        # DDIM's step is linear, of_x * x + of_output * output; find both factors, and solve for x
        one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        of_x, of_output = (self._down(each, high, low) for each in ((one, none), (none, one)))
        x0, _ = self.schedule.x0_and_eps(x, output, high)
        return Step((memory[0] - of_output * output) / of_x, x0, memory)

    def _down(self, pair: tuple[Tensor, Tensor], high: float, low: float) -> float:
        """DDIM's step for a pair (x, output), from alpha_bar `high` to `low`."""
        x0, eps = self.schedule.x0_and_eps(*pair, high)
        return float(math.sqrt(low) * x0 + math.sqrt(1 - low) * eps)
