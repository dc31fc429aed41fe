"""What every sampler has in common: a grid of noise levels, a pure step, and the official config files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from inspect import isabstract
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers.schedule import NoiseSchedule, compute_dtype, is_number
from minisd.schedulers.spacing import SPACINGS, Floats, spaced_timesteps, validate_steps

Memory = tuple[Any, ...]
Draw = Callable[[], Tensor]


class Step(NamedTuple):
    """The next, less noisy x; the clean picture as predicted at this call; what the next step needs."""

    x_prev: Tensor
    x0: Tensor
    memory: Memory | None


@dataclass(frozen=True, eq=False)
class Grid:
    """The constants of one run; `len(grid)` is its number of model calls: some samplers make more than steps.

    timesteps: (calls,) what the model is told; int64, or float32 for samplers in sigma space.
    source, previous: call i moves x from timestep source[i] to previous[i]; below 0 is the clean picture.
    sigmas: the calls + 1 noise levels of a sampler in sigma space, the last 0; empty for the others.
    init_noise_sigma: the run starts at this times unit noise.
    """

    timesteps: Tensor
    source: tuple[int, ...] = ()
    previous: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    init_noise_sigma: float = 1.0

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class Scheduler(ABC):
    """A sampler: an immutable description; what changes during a run is in the caller's hands.

        grid = scheduler.grid(50)
        x, memory = noise * grid.init_noise_sigma, None
        for i, t in enumerate(grid.timesteps):
            output = model(scheduler.scale_input(grid, i, x), t)
            x, x0, memory = scheduler.step(grid, i, x, output, memory)

    The defaults of fields are those of SD 1.x (as `from_config` of its scheduler_config.json gives them).
    x is sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps here; samplers in sigma space override what differs.
    """

    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    timestep_spacing: str = "leading"
    steps_offset: int = 1

    official_name: ClassVar[str]
    official_defaults: ClassVar[dict[str, Any]] = {}  # what the class means by a missing key, where not as below
    refused: ClassVar[dict[str, Any]] = {}  # keys of the class that we lack, with the value that changes nothing

    def __post_init__(self) -> None:
        if self.timestep_spacing not in SPACINGS:
            raise InputError(f"timestep_spacing is {self.timestep_spacing!r}, expected one of {', '.join(SPACINGS)}.")
        offset = self.steps_offset
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise InputError(f"steps_offset is {offset!r}, expected a whole number from 0 up; SD uses 1.")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is bool and not isinstance(value, bool):
                raise InputError(f"{each.name} is {value!r}, expected True or False.")
            if each.type is float and not (is_number(value) and value >= 0):
                raise InputError(f"{each.name} is {value!r}, expected a number from 0 up.")

    def grid(self, n: int, start: int = 0) -> Grid:
        """The levels of an n-step run without its first `start`: image to image enters there, by add_noise.

        Raises InputError unless n is a whole number in 1..num_train_timesteps and start in 0..n-1.
        """
        times = self._spaced(n, start)[start:].round().astype(int).tolist()
        stride = self.schedule.num_train_timesteps // n  # the reference's, also where the spacing is uneven
        return Grid(torch.tensor(times), source=tuple(times), previous=tuple(t - stride for t in times))

    def calls_before(self, n: int, start: int) -> int:
        """How many calls of grid(n) lead to where grid(n, start) begins: after so many another model can take over."""
        zero, one = torch.zeros(1), torch.ones(1)
        whole, rest = self.grid(n), self.grid(n, start)
        level = self.add_noise(rest, 0, zero, one)
        # the last that is as noisy: Heun and PNDM visit a level twice
        return max(i for i in range(len(whole)) if torch.equal(self.add_noise(whole, i, zero, one), level))

    def _spaced(self, n: int, start: int) -> Floats:
        """All of the n timesteps, after a check of n and of where the run is to start."""
        total = self.schedule.num_train_timesteps
        n = validate_steps(n, total)
        if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < n:
            raise InputError(f"a run of {n} steps cannot start at {start!r}, expected a whole number in 0..{n - 1}.")
        return self._spacing(n)

    def _spacing(self, n: int) -> Floats:
        """The n timesteps, descending."""
        total = self.schedule.num_train_timesteps
        return spaced_timesteps(self.timestep_spacing, n, total, self.steps_offset)

    def scale_input(self, grid: Grid, i: int, x: Tensor) -> Tensor:
        """x as the model wants to see it at call i."""
        return x

    def add_noise(self, grid: Grid, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """x before call i of the run for a known picture x0, in this sampler's own space; both (B, ...).

        len(grid) is after the last call: x0 itself. Image to image begins with it, inpainting goes on with it.
        """
        t = grid.previous[i - 1] if i > 0 else grid.source[0]
        return self.schedule.add_noise(x0, noise, t) if t >= 0 else x0

    def step(
        self,
        grid: Grid,
        i: int,
        x: Tensor,
        output: Tensor,
        memory: Memory | None = None,
        randn: Draw | None = None,
    ) -> Step:
        """From x at call i and the model's output for it, both (B, ...), to the next x; equal in, equal out.

        memory: what the step before returned, None at the start of a run. randn draws unit noise of x's shape
        and is called only if the sampler needs it. Half precision is computed in float32 and cast back.
        Raises InputError if i is not a call of the grid, the shapes differ, or randn is missing.
        """
        if not 0 <= i < len(grid):
            raise InputError(f"call {i} is not in this run, expected 0..{len(grid) - 1}.")
        if output.shape != x.shape:
            raise InputError(f"the model's output is {tuple(output.shape)}, expected x's shape {tuple(x.shape)}.")

        def draw() -> Tensor:
            if randn is None:
                raise InputError(f"{type(self).__name__} adds noise here: pass randn, a function that draws it.")
            noise = randn()
            if noise.shape != x.shape:
                raise InputError(f"randn gave {tuple(noise.shape)}, expected x's shape {tuple(x.shape)}.")
            return noise.to(x.device, dtype)

        dtype = compute_dtype(x.dtype)
        step = self._step(grid, i, x.to(dtype), output.to(dtype), memory, draw)
        return Step(step.x_prev.to(x.dtype), step.x0.to(x.dtype), step.memory)

    @abstractmethod
    def _step(self, grid: Grid, i: int, x: Tensor, output: Tensor, memory: Memory | None, draw: Draw) -> Step:
        """The sampler's own formula, in at least float32."""

    @classmethod
    def samplers(cls) -> dict[str, type[Self]]:
        """All samplers of this kind, by the names of their official classes."""
        found = {} if isabstract(cls) else {cls.official_name: cls}
        for kind in cls.__subclasses__():
            found |= kind.samplers()
        return found

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The sampler that a scheduler_config.json describes; of a sampler: that one with these values.

        A missing key means what it means to the official class; keys that do nothing for it are ignored.
        Raises InputError for a class that we lack, and for values outside of what the class knows.
        """
        if not isinstance(config, Mapping):
            raise InputError(
                f"a scheduler config is {type(config).__name__}, expected a dict as in scheduler_config.json."
            )
        if cls is Scheduler:
            known = cls.samplers()
            name = config.get("_class_name")
            if not isinstance(name, str) or name not in known:
                raise InputError(
                    f"the scheduler config names class {name!r}, expected one of {', '.join(sorted(known))}; "
                    "to use another in its place, call that one's own, as in DDIM.from_config(config)."
                )
            return known[name].from_config(config)
        unstated = config.get("_use_default_values") or ()  # written by the reference: another class's defaults
        stated = {key: value for key, value in config.items() if key not in unstated}
        for key, neutral in cls.refused.items():
            if stated.get(key, neutral) != neutral:
                raise InputError(f"{key} is {stated[key]!r}, expected {neutral!r}: {cls.__name__} has nothing else.")
        values = {**_OFFICIAL_DEFAULTS, **cls.official_defaults, **stated}
        schedule = {each.name: values[each.name] for each in fields(NoiseSchedule) if each.name in values}
        values["schedule"] = NoiseSchedule(**schedule)
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})

    @classmethod
    def in_place_of(cls, other: "Scheduler", **changes: Any) -> Self:
        """This sampler for the model that the other one was for.

        What it has and the other has not is as SD has it or, where the other clips, as only models of pixels do, as
        its class has it by default. changes: values for this sampler's fields. The other's timestep_spacing is not
        taken over where it is what its class does by default: each class has a spacing that suits it. Raises InputError
        for changes that it lacks.
        """
        own = {each.name for each in fields(cls)}
        unknown = sorted(set(changes) - own)
        if unknown:
            raise InputError(f"{cls.__name__} has no {', '.join(unknown)}.")
        default = cls.official_defaults if getattr(other, "clip_sample", False) else {}
        values = {name: value for name, value in default.items() if name in own}
        values |= {name: getattr(other, name) for name in own if hasattr(other, name)}
        usual = {**_OFFICIAL_DEFAULTS, **other.official_defaults}["timestep_spacing"]
        if type(other) is not cls and other.timestep_spacing == usual:
            del values["timestep_spacing"]
        return cls(**{**values, **changes})

    def to_config(self) -> dict[str, Any]:
        """As in scheduler_config.json: from_config of it is this sampler, and the official class reads it."""
        values = asdict(self)
        values = {"_class_name": self.official_name, **values.pop("schedule"), **values}
        if values["trained_betas"] is not None:
            values["trained_betas"] = list(values["trained_betas"])
        return values


_OFFICIAL_DEFAULTS = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
