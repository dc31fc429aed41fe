"""How fast a sampler's error falls with the number of steps, where the exact answer is known: normal data.

For x_0 ~ N(0, 1) the noise in x_t is eps = sqrt(1 - alpha_bar) x_t, and x_t does not change at all on the way from
noise to picture. The last step, to the clean picture, is of first order in every sampler and is left out.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from minisd.schedulers import LMS, DPMSolverMultistep, Euler, Heun, Scheduler, UniPC
from minisd.sticker.evaluation.plots import Data, new_figure, save_figure

STEPS = (10, 14, 20, 28, 40, 56, 80, 112, 160)
SAMPLERS: Mapping[str, Scheduler] = {  # with levels that are the same function of i / n for every n
    kind.__name__: kind(use_karras_sigmas=True) for kind in (Euler, Heun, DPMSolverMultistep, UniPC, LMS)
}


def error(sampler: Scheduler, n: int) -> float:
    """How far x is from where it should be, relative to that, at the last but one noise level of an n-step run.

    The sampler must be deterministic, and list its noise levels in its grid.
    """
    grid, memory = sampler.grid(n), None
    x = 1 / sampler.scale_input(grid, 0, torch.ones((), dtype=torch.float64))  # 1, in the units of the model
    for i, sigma in enumerate(grid.sigmas[: len(grid) - 1]):
        eps = sampler.scale_input(grid, i, x) * sigma / math.hypot(sigma, 1)
        x, _, memory = sampler.step(grid, i, x, eps, memory)
    return abs(sampler.scale_input(grid, len(grid) - 1, x).item() - 1)


def order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The p of error ~ steps^-p, over the second half of the numbers of steps."""
    half = len(steps) // 2
    return math.log(errors[half] / errors[-1]) / math.log(steps[-1] / steps[half])


def convergence(samplers: Mapping[str, Scheduler] = SAMPLERS, steps: Sequence[int] = STEPS) -> Data:
    """{"steps", "samplers": {name: {"errors", "order"}}}."""
    found = {}
    for name, sampler in samplers.items():
        errors = [error(sampler, n) for n in steps]
        found[name] = {"errors": errors, "order": order(steps, errors)}
    return {"steps": list(steps), "samplers": found}


def plot_convergence(data: Data, path: str | Path, overwrite: bool = False) -> Figure:
    """Errors over the number of steps, both logarithmic: the order is the slope."""
    falls = sorted((2 ** each["order"], name) for name, each in data["samplers"].items())
    (slow, first), (fast, best) = falls[0], falls[-1]
    figure, (axes,) = new_figure(
        1, f"Twice the steps: {first}'s error falls {slow:.0f} times, {best}'s {fast:.0f} times"
    )  # fmt: skip
    for name, each in data["samplers"].items():
        axes.plot(data["steps"], each["errors"], marker="o", label=f"{name}: order {each['order']:.1f}")
    axes.set(xlabel="steps", ylabel="error before the last step", xscale="log", yscale="log")
    axes.set_xticks(data["steps"], [str(n) for n in data["steps"]])
    axes.minorticks_off()
    axes.legend()
    return save_figure(figure, path, overwrite)
