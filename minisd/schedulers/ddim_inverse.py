"""DDIM backwards: from a picture to the noise that DDIM makes it of (Song et al. 2021, section 4.3)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step


@dataclass(frozen=True)
class DDIMInverse(Scheduler):
    """Takes the steps of DDIM at eta 0 from the last to the first, upwards in noise; no sampler, but a run as theirs.

    A step back asks the model at its less noisy end, as the noisier one is what it looks for. With `refine`, it then
    asks as many times more where the answer has led, and solves DDIM's step for x with that (fixed-point iteration;
    Pan et al. 2023), so that n steps are n (1 + refine) calls. set_alpha_to_one: see DDIM.
    """

    set_alpha_to_one: bool = False
    refine: int = 0

    official_name: ClassVar[str] = "DDIMInverseScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {"set_alpha_to_one": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.refine, int) or isinstance(self.refine, bool) or not 0 <= self.refine <= 100:
            raise InputError(f"refine is {self.refine!r}, expected a whole number in 0..100; 0 is plain, 2 is close.")
        if self.schedule.prediction_type == "sample":
            raise InputError("a model that predicts x0 says nothing about the noise in a picture; use one of eps or v.")

    @classmethod
    def samplers(cls) -> dict[str, type[Self]]:
        """None: it goes the other way."""
        return {}

    def grid(self, n: int, start: int = 0) -> Grid:
        """The levels of DDIM's n steps, backwards: call i moves x from timestep previous[i] up to source[i]."""
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
            raise InputError(f"call {i} is within a step, and a run begins with one: use call 0 of grid(n, start=...).")
        # DDIM's step is of_x x + of_output output
        one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        of_x, of_output = (self._down(each, high, low) for each in ((one, none), (none, one)))
        x0, _ = self.schedule.x0_and_eps(x, output, high)
        return Step((memory[0] - of_output * output) / of_x, x0, memory)

    def _down(self, pair: tuple[Tensor, Tensor], high: float, low: float) -> float:
        """DDIM's step from alpha_bar `high` to `low`, of (x, output)."""
        x0, eps = self.schedule.x0_and_eps(*pair, high)
        return float(math.sqrt(low) * x0 + math.sqrt(1 - low) * eps)
