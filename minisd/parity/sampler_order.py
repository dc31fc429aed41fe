"""The order of the samplers: how fast the error falls with the number of steps, for data with a known solution.

For x_0 ~ N(0, 1) the noise in x_t is eps = sqrt(1 - alpha_bar) x_t, and the exact x_t is constant during sampling. The
last step, to the clean image, is of first order in every sampler and is left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from minisd.schedulers import LMS, DPMSolverMultistep, Euler, Heun, Scheduler, UniPC

STEPS = (10, 14, 20, 28, 40, 56, 80, 112, 160)
SAMPLERS: Mapping[str, Scheduler] = {  # their noise levels are the same function of i / n for every n
    kind.__name__: kind(use_karras_sigmas=True) for kind in (Euler, Heun, DPMSolverMultistep, UniPC, LMS)
}


def error(sampler: Scheduler, n: int) -> float:
    """The relative error of x at the last but one noise level of a run of n steps.

    The sampler must be deterministic and list its noise levels in its grid.
    """
    grid, memory = sampler.grid(n), None
    x = 1 / sampler.scale_input(grid, 0, torch.ones((), dtype=torch.float64))  # 1 as input of the model
    for i, sigma in enumerate(grid.sigmas[: len(grid) - 1]):
        eps = sampler.scale_input(grid, i, x) * sigma / math.hypot(sigma, 1)
        x, _, memory = sampler.step(grid, i, x, eps, memory)
    return abs(sampler.scale_input(grid, len(grid) - 1, x).item() - 1)


def order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The p of error ~ steps^-p, measured over the second half of `steps`."""
    half = len(steps) // 2
    return math.log(errors[half] / errors[-1]) / math.log(steps[-1] / steps[half])


def convergence(samplers: Mapping[str, Scheduler] = SAMPLERS, steps: Sequence[int] = STEPS) -> dict[str, Any]:
    """{"steps", "samplers": {name: {"errors", "order"}}}."""
    found = {}
    for name, sampler in samplers.items():
        errors = [error(sampler, n) for n in steps]
        found[name] = {"errors": errors, "order": order(steps, errors)}
    return {"steps": list(steps), "samplers": found}
