"""The reference implementation beside ours: the same sampler twice, and the runs that the tests compare."""

import itertools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import diffusers
import torch
from torch import Tensor

from minisd.schedulers import DDPM, LCM, EulerAncestral, Grid, Scheduler

diffusers.logging.set_verbosity_error()

# n at which the reference (diffusers 0.42.1) gives n + 1 trailing timesteps, the last -1; ours gives n.
# fmt: off
TRAILING_BUGS = frozenset((
    61, 103, 121, 122, 201, 206, 217, 223, 227, 233, 242, 244, 397, 402, 412, 419, 434, 446, 454, 457,
    463, 465, 466, 484, 485, 487, 488, 497, 499, 769, 794, 804, 805, 824, 829, 835, 838, 868, 871, 887,
    892, 908, 914, 926, 930, 932, 937, 941, 951, 961, 965, 968, 970, 974, 975, 976, 979, 981, 985, 994,
    995, 998,
))
# fmt: on


def oracle(sampler: Scheduler, exact: bool = False, **overrides: object):
    """The reference's sampler from our config; `exact` replaces its float32 schedule by our float64 one."""
    config = {**sampler.to_config(), **overrides}
    reference = getattr(diffusers, sampler.official_name).from_config(config)
    if exact:
        reference.alphas_cumprod = sampler.schedule.alpha_bars.clone()
        reference.one = torch.tensor(1.0, dtype=torch.float64)
        if hasattr(reference, "final_alpha_cumprod"):
            one = reference.config.set_alpha_to_one
            reference.final_alpha_cumprod = reference.one if one else reference.alphas_cumprod[0]
    if isinstance(reference, diffusers.LMSDiscreteScheduler):
        quadrature = reference.get_lms_coefficient

        def on_floats(*args: int) -> float:  # a hundred times faster than on tensors
            tensor, reference.sigmas = reference.sigmas, reference.sigmas.tolist()
            coefficient, reference.sigmas = quadrature(*args), tensor
            return coefficient

        reference.get_lms_coefficient = on_floats
    return reference


class DoublePrecision:
    """Stands in for `torch` in the reference's modules, some of which go to float32 whatever they are given."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def adds_noise(sampler: Scheduler) -> bool:
    """Whether its steps draw noise; DDIM's eta apart."""
    return isinstance(sampler, DDPM | LCM | EulerAncestral) or "sde" in getattr(sampler, "algorithm_type", "")


def fake_model(x: Tensor, t: Tensor) -> Tensor:
    """Stands in for the UNet: smooth, not linear, and dependent on the timestep."""
    return 0.3 * torch.tanh(x) + 0.05 * torch.cos(3 * x) + 0.0002 * t.to(x) * x


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(7), dtype=dtype)


def drawing(like: Tensor, generator: torch.Generator | int) -> Callable[[], Tensor]:
    """A randn for our steps: noise of the shape and dtype of `like`, from a generator or a seed."""
    source = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    return lambda: torch.randn(like.shape, generator=source, dtype=like.dtype)


def our_run(sampler: Scheduler, n: int, x: Tensor, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """(x, x0) after each call."""
    grid, memory, generator = sampler.grid(n), None, torch.Generator().manual_seed(seed)
    x, trace = x * grid.init_noise_sigma, []
    for i, t in enumerate(grid.timesteps):
        output = fake_model(sampler.scale_input(grid, i, x), t)
        x, x0, memory = sampler.step(grid, i, x, output, memory, drawing(x, generator))
        trace.append((x, x0))
    return trace


def their_run(reference, n: int, x: Tensor, exact: Grid | None = None, seed: int | None = None, **step):
    """As our_run, by the reference; x0 is None where it gives none. `exact`: our noise levels, in float64."""
    reference.set_timesteps(n)
    if exact is not None and exact.sigmas:
        reference.sigmas = torch.tensor(exact.sigmas, dtype=torch.float64)
    x = x * (float(reference.init_noise_sigma) if exact is None else exact.init_noise_sigma)
    if seed is not None:
        step["generator"] = torch.Generator().manual_seed(seed)
    trace = []
    module = sys.modules[type(reference).__module__]
    with nullcontext() if exact is None else mock.patch.object(module, "torch", DoublePrecision()):
        for i, t in enumerate(reference.timesteps):
            t = t if exact is None else exact.timesteps[i]
            output = fake_model(reference.scale_model_input(x, t), t)
            result = reference.step(output, t, x, **step)
            x = result.prev_sample
            trace.append((x, getattr(result, "pred_original_sample", getattr(result, "denoised", None))))
    return trace


def largest_difference(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor | None]]) -> float:
    """Over all calls, relative to the largest value of each."""
    assert len(ours) == len(theirs)
    worst = 0.0
    for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        if b is not None:
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst
