"""PNDM: linear multistep over eps, moved by DDIM's formula (Liu et al. 2022); the default of SD 1 and 2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step

# Weights of the model's outputs, newest first, by how many there are (equation 9).
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA = (1 / 6, 2 / 6, 2 / 6, 1 / 6)  # of four outputs within one step (equation 10)


def weighted_sum(weights: Sequence[float], outputs: Sequence[Tensor]) -> Tensor:
    """Sum of weight times output."""
    return sum((w * e for w, e in zip(weights, outputs, strict=True)), start=torch.zeros_like(outputs[0]))


@dataclass(frozen=True)
class PNDM(Scheduler):
    """Mixes the last four outputs of the model, then moves x as DDIM does.

    How it gets the first of them: with skip_prk_steps (PLMS, as SD), the first step is made twice, the second
    time with the mean of the outputs at both of its ends, so that n steps are n + 1 model calls. Without, the
    first three steps are Runge-Kutta steps of four calls. set_alpha_to_one: see DDIM.
    """

    skip_prk_steps: bool = True
    set_alpha_to_one: bool = False

    official_name: ClassVar[str] = "PNDMScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {"skip_prk_steps": False}

    def grid(self, n: int, start: int = 0) -> Grid:
        """As every sampler, plus the calls within a step, where `timesteps` and `source` differ."""
        steps = super().grid(n, start)
        times, stride = list(steps.source), steps.source[0] - steps.previous[0]
        if self.skip_prk_steps:
            extra = times[1:2]  # the second timestep twice, the first time as the far end of the first step
            calls = times[:1] + extra + times[1:]
            source = times[:1] + [t + stride for t in extra] + times[1:]
            previous = [*steps.previous[:1], *extra, *steps.previous[1:]]
        else:
            half = stride // 2
            first = list(pairwise(times[:4]))  # the last step of a run is never Runge-Kutta
            calls = [call for t, s in first for call in (t, s + half, s + half, s)] + times[len(first) :]
            source = [t for t, _ in first for _ in range(4)] + times[len(first) :]
            previous = [end for t, s in first for end in (t - half, s + half, s, s)]
            previous += steps.previous[len(first) :]
        return Grid(torch.tensor(calls), source=tuple(source), previous=tuple(previous))

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        t, source = int(grid.timesteps[i]), grid.source[i]
        # outputs at the starts of steps, newest first; those within the step under way; x at its start
        outputs, within, x_start = memory or ((), (), None)
        latest = output.clone()  # clones: both may be the caller's own buffers
        if t == source:
            outputs, within, x_start = (latest, *outputs)[:4], (), x.clone()
        elif x_start is None:
            raise InputError(f"call {i} is within a step, and a run begins with one: use call 0 of grid(n, start=...).")
        within = (*within, latest)
        if grid.source.count(source) == len(RUNGE_KUTTA):
            mixed = latest if len(within) < 4 else weighted_sum(RUNGE_KUTTA, within)
        elif len(within) == 2:
            mixed = weighted_sum((1 / 2, 1 / 2), within)
        else:
            mixed = weighted_sum(ADAMS_BASHFORTH[len(outputs)], outputs)
        x0, _ = self.schedule.x0_and_eps(x, output, self.schedule.alpha_bar(t))
        return Step(self._move(x_start, mixed, source, grid.previous[i]), x0, (outputs, within, x_start))

    def _move(self, x: Tensor, output: Tensor, t: int, s: int) -> Tensor:
        """x from timestep t to s: DDIM at eta 0, which is equation 11 in other words."""
        clean = 1.0 if self.set_alpha_to_one else self.schedule.alpha_bar(0)
        alpha_bar_prev = self.schedule.alpha_bar(s, clean)
        x0, eps = self.schedule.x0_and_eps(x, output, self.schedule.alpha_bar(t))
        return math.sqrt(alpha_bar_prev) * x0 + math.sqrt(1 - alpha_bar_prev) * eps
