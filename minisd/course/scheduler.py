"""Samplers as the courses use them: with the state of a run, which minisd's own samplers do not keep.

A step may be repeated, to read its x0 or with other latents. The repeated step uses the same history, so a preview
never changes the image. Some samplers call the UNet twice at one timestep (PNDM at the second, Heun at all of them);
there, other latents mean the next call.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from minisd.course.component import CourseOutput, load_scheduler
from minisd.errors import InputError
from minisd.schedulers import DDIM, NoiseSchedule, Scheduler
from minisd.schedulers.base import Memory
from minisd.schedulers.sigma_space import SigmaSpace


class SchedulerConfig(CourseOutput):
    """The values of scheduler_config.json; `core` is the sampler that they belong to.

    leftovers: values of the samplers before it that this one lacks; the next one may have them.
    """

    def __init__(self, core: Scheduler, leftovers: Mapping[str, Any]) -> None:
        super().__init__({**leftovers, **core.to_config()})
        self.core = core
        self.leftovers = {**leftovers, **{each.name: getattr(core, each.name) for each in fields(core)}}


class CourseScheduler:
    """A sampler and its run. `core` is minisd's sampler; `timesteps` may be assigned, as in the courses."""

    core: Scheduler
    kind: ClassVar[type[Scheduler]]
    reference_values: ClassVar[Mapping[str, Any]] = {}  # of the fields that the official class lacks
    knows_zero_snr: ClassVar[bool] = True  # whether the official class reads rescale_betas_zero_snr
    timesteps: Tensor
    sigmas: Tensor  # of samplers in sigma space

    def __init__(self, **config: Any) -> None:
        """Keys of scheduler_config.json; the defaults are those of the official class. Raises InputError."""
        own = {each.name for kind in (NoiseSchedule, self.kind) for each in fields(kind)} - {"schedule", "eta"}
        unknown = sorted(set(config) - own - set(self.kind.fixed_values))
        if unknown:
            raise InputError(f"{type(self).__name__} has no {', '.join(unknown)}, expected {', '.join(sorted(own))}.")
        self._set_core(self.kind.from_config({**self.reference_values, **config}))

    @classmethod
    def from_core(cls, core: Scheduler) -> Self:
        """A wrapper of a sampler of minisd."""
        scheduler = cls.__new__(cls)
        scheduler._set_core(core)
        return scheduler

    @classmethod
    def like_reference(cls, core: Scheduler) -> Self:
        """A wrapper that ignores what the official class does not know, as the reference does, but keeps it in .config.

        `from_core` wraps the sampler as it is.
        """
        zero_snr = core.schedule.rescale_betas_zero_snr and cls.knows_zero_snr
        scheduler = cls.from_core(replace(core, schedule=replace(core.schedule, rescale_betas_zero_snr=zero_snr)))
        scheduler._described = core
        return scheduler

    def _set_core(self, core: Scheduler) -> None:
        self.core = self._described = core
        self._leftovers: Mapping[str, Any] = {}
        # the reference starts with every timestep of the training; LCM has fewer
        self.set_timesteps(getattr(core, "original_inference_steps", core.schedule.num_train_timesteps))

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, **options: Any) -> Self:
        """This sampler from the .config of another, or from a dict; unknown keys are ignored.

        Keys that a .config lacks get the values of Stable Diffusion. A name, or a folder, with the options of
        `from_pretrained`: the config of a model. Raises InputError.
        """
        if isinstance(config, str | Path):
            return cls.from_pretrained(config, **options)
        if isinstance(config, SchedulerConfig):
            own = {each.name for each in fields(cls.kind)}
            lacking = own - {each.name for each in fields(config.core)}
            others = {**cls.reference_values, **config.leftovers}
            values = {name: value for name, value in others.items() if name in lacking}
            scheduler = cls.like_reference(cls.kind.in_place_of(config.core, **{**values, **options}))
            scheduler._leftovers = {name: value for name, value in config.leftovers.items() if name not in own}
            return scheduler
        return cls.like_reference(cls.kind.from_config({**cls.reference_values, **config, **options}))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        subfolder: str | None = "scheduler",
        revision: str | None = None,
        use_auth_token: bool | str | None = None,
        local_files_only: bool | None = None,
    ) -> Self:
        """This sampler with the noise schedule of a model. Raises InputError, and what weights_loader.load raises."""
        if subfolder not in (None, "scheduler"):
            raise InputError(f"subfolder is {subfolder!r}, expected 'scheduler' for {cls.__name__}.")
        core = load_scheduler(source, revision, use_auth_token, local_files_only)
        if isinstance(core, cls.kind):
            core = replace(core, **cls.reference_values)
        return cls.from_config(SchedulerConfig(core, {}))

    @property
    def config(self) -> SchedulerConfig:
        """The settings, by name and by key; another sampler's from_config accepts them."""
        return SchedulerConfig(self._described, self._leftovers)

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps in training."""
        return self.core.schedule.num_train_timesteps

    def __len__(self) -> int:
        return self.num_train_timesteps

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.core.to_config(), indent=2)}"

    @property
    def betas(self) -> Tensor:
        """(T,), float32."""
        return self.core.schedule.betas.float()

    @property
    def alphas(self) -> Tensor:
        """1 - betas, (T,), float32."""
        return (1 - self.core.schedule.betas).float()

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar, (T,), float32."""
        return self.core.schedule.alpha_bars.float()

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that the run starts from."""
        return self.grid.init_noise_sigma

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Start a run of that many steps. Raises InputError."""
        self.grid = self.core.grid(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = self.grid.timesteps.to(device)
        if self.grid.sigmas:
            self.sigmas = torch.tensor(self.grid.sigmas)
        self._last, self._x, self._x_prev = -1, torch.empty(0), torch.empty(0)  # the last call, its x and its result
        self._before: Memory | None = None  # the sampler's memory before and after that call
        self._after: Memory | None = None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """The model's input for x (B, ...) at a timestep of the run. Raises InputError for any other timestep."""
        if not isinstance(self.core, SigmaSpace):
            return sample
        return self.core.scale_input(self.grid, self._call_index(timestep, sample), sample)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> CourseOutput | tuple[Tensor, Tensor]:
        """The model's output at a timestep of the run, and x, both (B, ...) -> .prev_sample, .pred_original_sample.

        eta: DDIM only. generator: for the noise, else torch's global one. Raises InputError for a timestep that is not
        in the run, and for arguments that minisd's step does not accept.
        """
        i = self._call_index(timestep, sample)
        memory = self._before if i == self._last else self._after if i > self._last else None
        core = self.core
        if eta != 0:
            if not isinstance(core, DDIM):
                raise InputError(f"eta is {eta!r}, but only DDIM has an eta; leave it out for {type(self).__name__}.")
            core = replace(core, eta=eta)

        def randn() -> Tensor:
            return torch.randn(sample.shape, generator=generator, dtype=sample.dtype).to(sample.device)

        x_prev, x0, after = core.step(self.grid, i, sample, model_output, memory, randn)
        self._last, self._x, self._x_prev = i, sample.detach().clone(), x_prev.detach().clone()
        self._before, self._after = memory, after
        return CourseOutput(prev_sample=x_prev, pred_original_sample=x0) if return_dict else (x_prev, x0)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v prediction for x0 and noise (B, ...) at whole timesteps, () or (B,). Raises InputError."""
        return self.core.schedule.velocity(sample, noise, torch.as_tensor(timesteps))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """x0 and noise (B, ...) mixed at timesteps, one or B, in this sampler's own space.

        timesteps: whole numbers; for samplers in sigma space (LMS, Euler, Heun) those of the run. Raises InputError.
        """
        times = torch.as_tensor(timesteps).reshape(-1)
        if len(times) not in (1, len(original_samples)):
            raise InputError(
                f"got {len(times)} timesteps for a batch of {len(original_samples)}, expected 1 or one for each."
            )
        if isinstance(self.core, SigmaSpace):
            calls = [self._calls_at(t)[0] for t in times]
            rows = zip(calls, original_samples.chunk(len(calls)), noise.chunk(len(calls)), strict=True)
            return torch.cat([self.core.add_noise(self.grid, i, x0, eps) for i, x0, eps in rows])
        if times.is_floating_point() and bool((times != times.round()).any()):
            raise InputError(f"timesteps are {times.tolist()}, expected whole numbers for {type(self).__name__}.")
        return self.core.schedule.add_noise(original_samples, noise, times.long())

    def _calls_at(self, timestep: Tensor | float) -> list[int]:
        """The indices of the UNet calls that the run makes at a timestep."""
        found = [i for i, t in enumerate(self.grid.timesteps.tolist()) if t == float(timestep)]
        if not found:
            raise InputError(
                f"timestep is {float(timestep):g}, expected a timestep of this run's {self.num_inference_steps} steps; "
                "call set_timesteps, then use the values of .timesteps."
            )
        return found

    def _call_index(self, timestep: Tensor | float, x: Tensor) -> int:
        """The index of the call with x at a timestep: the last call repeated, or the next one."""
        calls = self._calls_at(timestep)
        later = [i for i in calls if i > self._last]
        if self._last in calls:
            # a step can leave x unchanged, as Heun's does in pure noise; then the same x means the next call
            same, unmoved = torch.equal(x, self._x), torch.equal(x, self._x_prev)
            if not later or (same and not unmoved):
                return self._last
        return (later or calls)[0]
