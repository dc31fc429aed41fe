"""PNDM: linear multistep over the model's outputs, moved by DDIM's step (Liu et al. 2022); used by SD 1 and 2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.base import Draw, Grid, Memory, Scheduler, Step

# Weights of the outputs at the starts of the last steps, newest first, by their number.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
# Weights of the outputs within one step.
IMPROVED_EULER = (1 / 2, 1 / 2)
RUNGE_KUTTA = (1 / 6, 2 / 6, 2 / 6, 1 / 6)


def weighted_sum(weights: Sequence[float], outputs: Sequence[Tensor]) -> Tensor:
    """The sum of weight times output."""
    return sum((w * e for w, e in zip(weights, outputs, strict=True)), start=torch.zeros_like(outputs[0]))


@dataclass(frozen=True)
class PNDM(Scheduler):
    """Mixes outputs of the model to one output e', then makes DDIM's step from t to s with it: phi(x_t, e', t, s).

    The methods of the paper, for a model that predicts eps. e(x, t) is its output; e_t is the output at the start of
    the step at t; d is the length of a step:

        transfer part
            phi(x_t, e, t, s) = sqrt(alpha_bar_s) (x_t - sqrt(1 - alpha_bar_t) e) / sqrt(alpha_bar_t)
                                + sqrt(1 - alpha_bar_s) e

        pseudo linear multi-step, one call
            e' = (55 e_t - 59 e_{t+d} + 37 e_{t+2d} - 9 e_{t+3d}) / 24

        pseudo Runge-Kutta, four calls
            e1 = e(x_t, t)                x1 = phi(x_t, e1, t, t - d/2)
            e2 = e(x1, t - d/2)           x2 = phi(x_t, e2, t, t - d/2)
            e3 = e(x2, t - d/2)           x3 = phi(x_t, e3, t, t - d)
            e4 = e(x3, t - d)             e' = (e1 + 2 e2 + 2 e3 + e4) / 6

    The multi-step method needs the outputs of three earlier steps. With skip_prk_steps=False, as in the paper, the
    first three steps are Runge-Kutta. With skip_prk_steps=True (PLMS), as in SD, they have lower order and the first
    one has two calls, so n steps are n + 1 calls:

        pseudo improved Euler, two calls
            e1 = e(x_t, t)                x1 = phi(x_t, e1, t, t - d)
            e2 = e(x1, t - d)             e' = (e1 + e2) / 2

    set_alpha_to_one: see DDIM. whole_first_step: a PLMS run that starts later, as in image to image, begins with both
    calls of its first step, as a run from noise does. False: as in the reference, which cuts the list of calls. Its run
    begins one step earlier; its second call is at the next timestep, but ends the first step; all later calls are at a
    timestep one step below that of x.

    Memory: outputs at the starts of steps, newest first; outputs of this step; its x_t.
    """

    skip_prk_steps: bool = True
    set_alpha_to_one: bool = False
    whole_first_step: bool = True

    official_name: ClassVar[str] = "PNDMScheduler"
    official_defaults: ClassVar[dict[str, Any]] = {"skip_prk_steps": False}

    def grid(self, n: int, start: int = 0) -> Grid:
        """As for every sampler, plus the calls within a step, for which timesteps and source differ."""
        if start and self.skip_prk_steps and not self.whole_first_step:
            return self._cut_grid(n, start)
        steps = super().grid(n, start)
        times, stride = list(steps.source), steps.source[0] - steps.previous[0]
        if self.skip_prk_steps:
            extra = times[1:2]  # the second timestep twice: first as the end of the first step
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

    def _cut_grid(self, n: int, start: int) -> Grid:
        """The whole run without its first `start` calls; the first two of the others are one step."""
        whole, steps = self.grid(n), super().grid(n, start - 1)
        stride = steps.source[0] - steps.previous[0]
        calls = whole.timesteps[start:].tolist()
        previous = [t - stride for t in calls]
        return Grid(
            torch.tensor(calls),
            source=(calls[0], calls[1] + stride, *calls[2:]),
            previous=(previous[0], calls[1], *previous[2:]),
        )

    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        t, start = int(grid.timesteps[i]), grid.source[i]
        outputs, within, x_t = memory or ((), (), None)
        e = output.clone()  # a clone, because the caller may reuse its buffer; x too
        if t == start:
            outputs, within, x_t = (e, *outputs)[:4], (), x.clone()
        elif x_t is None:
            raise InputError(f"call {i} is within a step and memory is None; start a run at call 0 of grid(n, start).")
        within = (*within, e)
        if grid.source.count(start) == len(RUNGE_KUTTA):
            e_prime = weighted_sum(RUNGE_KUTTA, within) if len(within) == len(RUNGE_KUTTA) else e
        elif len(within) == len(IMPROVED_EULER):
            e_prime = weighted_sum(IMPROVED_EULER, within)
        else:
            e_prime = weighted_sum(ADAMS_BASHFORTH[len(outputs)], outputs)
        x0, _ = self.schedule.x0_and_eps(x, output, self.schedule.alpha_bar(t))
        return Step(self._phi(x_t, e_prime, start, grid.previous[i]), x0, (outputs, within, x_t))

    def _phi(self, x: Tensor, output: Tensor, t: int, s: int) -> Tensor:
        """The transfer part: x from timestep t to s by an output, as in DDIM at eta 0."""
        clean = 1.0 if self.set_alpha_to_one else self.schedule.alpha_bar(0)
        alpha_bar_prev = self.schedule.alpha_bar(s, clean)
        x0, eps = self.schedule.x0_and_eps(x, output, self.schedule.alpha_bar(t))
        return math.sqrt(alpha_bar_prev) * x0 + math.sqrt(1 - alpha_bar_prev) * eps
