"""What all samplers have in common: a grid of noise levels, and a pure step from one level to the next."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from minisd._internal import validation
from minisd._internal.config_fields import Range, check_fields, refuse
from minisd._internal.messages import shown
from minisd.errors import InputError
from minisd.schedulers.official_config import OfficialConfig
from minisd.schedulers.schedule import NoiseSchedule, compute_dtype
from minisd.schedulers.spacing import SPACINGS, Floats, spaced_timesteps, validate_steps

# What one step leaves for the next, such as earlier outputs of the model; its content is private to each sampler.
Memory = tuple[Any, ...]

# A function that returns new unit noise of the shape of x.
Draw = Callable[[], Tensor]


class Step(NamedTuple):
    """The result of a step: x_prev, x_{t-1} in the papers; the clean image x0 predicted by this call; the memory."""

    x_prev: Tensor
    x0: Tensor
    memory: Memory | None


@dataclass(frozen=True, eq=False)
class Grid:
    """The noise levels of one run; len(grid) is the number of model calls, for some samplers more than the steps.

    timesteps: (calls,) the timestep that the model receives; int64, or float32 for samplers in sigma space.
    source, previous: call i moves x from timestep source[i] to previous[i]; below 0 is the end of the run.
    sigmas: the calls + 1 ratios of noise to signal, the last 0; empty for samplers that use source and previous.
    earlier_sigmas: in sigma space, the ratios of the calls that a run with `start` leaves out.
    init_noise_sigma: the run starts from unit noise times this.
    """

    timesteps: Tensor
    source: tuple[int, ...] = ()
    previous: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    earlier_sigmas: tuple[float, ...] = ()
    init_noise_sigma: float = 1.0

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class Scheduler(OfficialConfig, ABC):
    """A sampler: immutable settings. The state of a run, x and memory, belongs to the caller.

        grid = scheduler.grid(50)
        x, memory = noise * grid.init_noise_sigma, None
        for i, t in enumerate(grid.timesteps):
            output = model(scheduler.scale_input(grid, i, x), t)
            x, x0, memory = scheduler.step(grid, i, x, output, memory)

    x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, unless a sampler documents another space (sigma_space.py).
    The defaults of all fields are those of SD 1.x. Raises InputError for values outside of a field's range.
    """

    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    timestep_spacing: str = "leading"
    steps_offset: Annotated[int, Range(0, 65535)] = 1

    def __post_init__(self) -> None:
        if self.timestep_spacing not in SPACINGS:
            raise InputError(
                f"timestep_spacing is {shown(self.timestep_spacing)}, expected one of {', '.join(SPACINGS)}."
            )
        check_fields(self)
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and value < 0:
                refuse(self, each.name, "a number from 0 up")
        if self.steps_offset >= self.schedule.num_train_timesteps:
            refuse(self, "steps_offset", f"less than num_train_timesteps, {self.schedule.num_train_timesteps}")

    def grid(self, n: int, start: int = 0) -> Grid:
        """The levels of an n-step run without its first `start` steps, which image to image skips.

        Raises InputError unless n is a whole number in 1..num_train_timesteps and start in 0..n-1.
        """
        times = self._spaced(n, start)[start:].round().astype(int).tolist()
        stride = self.schedule.num_train_timesteps // n  # as in the reference, also where the spacing is uneven
        return Grid(torch.tensor(times), source=tuple(times), previous=tuple(t - stride for t in times))

    def calls_before(self, n: int, start: int) -> int:
        """The number of calls of grid(n) that lead to the first level of grid(n, start)."""
        whole, rest = self.grid(n), self.grid(n, start)
        level = self.noise_level(rest, 0)
        # the last such call: Heun and PNDM visit a level twice
        return max(i for i in range(len(whole)) if self.noise_level(whole, i) == level)

    def _spaced(self, n: int, start: int) -> Floats:
        """All n timesteps of the whole run, after a check of n and of the step at which this run starts."""
        n = validate_steps(n, self.schedule.num_train_timesteps)
        validation.whole_number(start, f"start of a run of {n} steps", 0, n - 1)
        return self._spacing(n)

    def _spacing(self, n: int) -> Floats:
        """The n timesteps, descending."""
        return spaced_timesteps(self.timestep_spacing, n, self.schedule.num_train_timesteps, self.steps_offset)

    def scale_input(self, grid: Grid, i: int, x: Tensor) -> Tensor:
        """The input of the model at call i: x with the variance of its training."""
        return x

    def add_noise(self, grid: Grid, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """x before call i for a known clean image x0, in this sampler's space; x0 and noise (B, ...).

        i = len(grid) is the end of the run. Image to image starts from this x; inpainting uses it at each call.
        """
        t = self._timestep_before(grid, i)
        return self.schedule.add_noise(x0, noise, t) if t >= 0 else x0

    def noise_level(self, grid: Grid, i: int) -> float:
        """The standard deviation of the noise in x before call i, as add_noise has it in float32."""
        return torch.tensor(self._sigma(grid, i)).item()

    def _sigma(self, grid: Grid, i: int) -> float:
        """noise_level in full precision."""
        return math.sqrt(1 - self.schedule.alpha_bar(self._timestep_before(grid, i)))

    def _timestep_before(self, grid: Grid, i: int) -> int:
        """The timestep of x before call i; below 0 is the clean image."""
        return grid.previous[i - 1] if i > 0 else grid.source[0]

    def step(
        self,
        grid: Grid,
        i: int,
        x: Tensor,
        output: Tensor,
        memory: Memory | None = None,
        randn: Draw | None = None,
    ) -> Step:
        """The step of call i: x and the model's output for it, both (B, ...), to the next x. A pure function.

        memory: as returned by the step before; None for the first one. randn: called only by samplers that add noise.
        Half precision is computed in float32 and cast back.
        Raises InputError if i is not a call of the grid, if shapes differ, or if randn is missing.
        """
        if not 0 <= i < len(grid):
            raise InputError(f"call is {i}, expected a call of this run, 0..{len(grid) - 1}.")
        if output.shape != x.shape:
            raise InputError(f"the model's output is {tuple(output.shape)}, expected the shape of x, {tuple(x.shape)}.")

        def draw() -> Tensor:
            if randn is None:
                raise InputError(f"{type(self).__name__} adds noise: pass randn, a function that returns noise.")
            noise = randn()
            if noise.shape != x.shape:
                raise InputError(f"randn() is {tuple(noise.shape)}, expected the shape of x, {tuple(x.shape)}.")
            return noise.to(x.device, dtype)

        dtype = compute_dtype(x.dtype)
        step = self._step(grid, i, x.to(dtype), output.to(dtype), memory, draw)
        return Step(step.x_prev.to(x.dtype), step.x0.to(x.dtype), step.memory)

    @abstractmethod
    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        """The formula of the sampler, in at least float32."""
