"""Samplers as the courses use them: objects that know where their run is, over minisd's, which do not.

A step may be made twice, to look at its x0 or with other latents: the second time is the same step again, from the same
history, so a preview never changes the picture. Only where a sampler visits a timestep twice by itself (PNDM's second,
Heun's all) do other latents mean its next call.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from minisd.course.component import load
from minisd.course.output import Output
from minisd.errors import InputError
from minisd.schedulers import DDIM, NoiseSchedule, Scheduler
from minisd.schedulers.base import Memory
from minisd.schedulers.sigma_space import SigmaSpace


class SchedulerConfig(Output):
    """The values of scheduler_config.json, and the sampler that they are of."""

    def __init__(self, core: Scheduler) -> None:
        super().__init__(core.to_config())
        self.core = core


class CourseScheduler:
    """A sampler and a run of it. `core` is minisd's; `timesteps` may be assigned, as the lessons do."""

    core: Scheduler
    kind: ClassVar[type[Scheduler]]
    timesteps: Tensor
    sigmas: Tensor  # of samplers in sigma space

    def __init__(self, **config: Any) -> None:
        """Keys of scheduler_config.json; a missing one is as the official class has it. Raises InputError."""
        own = {each.name for kind in (NoiseSchedule, self.kind) for each in fields(kind)} - {"schedule", "eta"}
        unknown = sorted(set(config) - own - set(self.kind.refused))
        if unknown:
            raise InputError(f"{type(self).__name__} has no {', '.join(unknown)}, expected {', '.join(sorted(own))}.")
        self._begin(self.kind.from_config(config))

    @classmethod
    def of(cls, scheduler: "Scheduler | CourseScheduler") -> "CourseScheduler":
        """Any of minisd's samplers under its course name; one that is a course's stays itself. Raises InputError."""
        if isinstance(scheduler, CourseScheduler):
            return scheduler
        for named in CourseScheduler.__subclasses__():
            if type(scheduler) is named.kind:
                return named._over(scheduler)
        names = ", ".join(named.__name__ for named in CourseScheduler.__subclasses__())
        raise InputError(f"scheduler is {scheduler!r}, expected one of {names}; call one, or its from_config.")

    @classmethod
    def _over(cls, core: Scheduler) -> Self:
        made = cls.__new__(cls)
        made._begin(core)
        return made

    def _begin(self, core: Scheduler) -> None:
        self.core = core
        longest = getattr(core, "original_inference_steps", core.schedule.num_train_timesteps)  # LCM knows no more
        self.set_timesteps(longest)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """This sampler from another one's .config, or from a dict; keys that it does not know are ignored.

        From a .config, what the other has not is as Stable Diffusion has it. Raises InputError.
        """
        if isinstance(config, SchedulerConfig):
            return cls._over(cls.kind.in_place_of(config.core))
        return cls._over(cls.kind.from_config(config))

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
        """This sampler for a model. Raises InputError, and what weights_loader.load raises."""
        if subfolder not in (None, "scheduler"):
            raise InputError(f"subfolder is {subfolder!r}, expected 'scheduler' for {cls.__name__}.")
        sd = load(source, revision, use_auth_token=use_auth_token, local_files_only=local_files_only)
        return cls._over(cls.kind.in_place_of(sd.scheduler))

    @property
    def config(self) -> SchedulerConfig:
        """What it is set to, by name and by key; for another sampler's from_config."""
        return SchedulerConfig(self.core)

    @property
    def num_train_timesteps(self) -> int:
        """Noise levels of the training."""
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
        """Unit noise times this is where the run begins."""
        return self.grid.init_noise_sigma

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Begin a run of so many steps. Raises InputError."""
        self.grid = self.core.grid(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = self.grid.timesteps.to(device)
        if self.grid.sigmas:
            self.sigmas = torch.tensor(self.grid.sigmas)
        self._at, self._x, self._x_prev = -1, torch.empty(0), torch.empty(0)  # the call made last, its x and result
        self._before: Memory | None = None  # memory before and after it
        self._after: Memory | None = None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """x (B, ...) as the model wants to see it at a timestep of the run. Raises InputError for another one."""
        if not isinstance(self.core, SigmaSpace):
            return sample
        return self.core.scale_input(self.grid, self._place(timestep, sample), sample)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Output | tuple[Tensor, Tensor]:
        """The model's output at a timestep of the run, x, both (B, ...) -> .prev_sample, .pred_original_sample.

        eta: DDIM only. generator: of the noise, else torch's global one. Raises InputError for a timestep that is not
        of the run, and for what minisd's step does not take.
        """
        i = self._place(timestep, sample)
        memory = self._before if i == self._at else self._after if i > self._at else None
        core = self.core
        if eta != 0:
            if not isinstance(core, DDIM):
                raise InputError(f"eta is {eta!r}, but only DDIM has one; leave it out for {type(self).__name__}.")
            core = replace(core, eta=eta)

        def randn() -> Tensor:
            return torch.randn(sample.shape, generator=generator, dtype=sample.dtype).to(sample.device)

        x_prev, x0, after = core.step(self.grid, i, sample, model_output, memory, randn)
        self._at, self._x, self._x_prev = i, sample.detach().clone(), x_prev.detach().clone()
        self._before, self._after = memory, after
        return Output(prev_sample=x_prev, pred_original_sample=x0) if return_dict else (x_prev, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """x0 and noise (B, ...) mixed at timesteps, one or B, in this sampler's own space; whole, if not of the run.

        Samplers in sigma space (LMS, Euler, Heun) know the run's timesteps alone. Raises InputError.
        """
        times = torch.as_tensor(timesteps).reshape(-1)
        if len(times) not in (1, len(original_samples)):
            raise InputError(
                f"got {len(times)} timesteps for a batch of {len(original_samples)}, expected 1 or as many."
            )
        if isinstance(self.core, SigmaSpace):
            places = [self._places(t)[0] for t in times]
            rows = zip(original_samples.chunk(len(places)), noise.chunk(len(places)), places, strict=True)
            return torch.cat([self.core.add_noise(self.grid, place, x0, eps) for x0, eps, place in rows])
        if times.is_floating_point() and bool((times != times.round()).any()):
            raise InputError(f"timesteps are {times.tolist()}, expected whole numbers for {type(self).__name__}.")
        return self.core.schedule.add_noise(original_samples, noise, times.long())

    def _places(self, timestep: Tensor | float) -> list[int]:
        """The calls of the run that are made at a timestep."""
        found = [i for i, t in enumerate(self.grid.timesteps.tolist()) if t == float(timestep)]
        if not found:
            raise InputError(
                f"timestep is {float(timestep):g}, which is not one of this run's {self.num_inference_steps} steps; "
                "call set_timesteps, and take one out of .timesteps."
            )
        return found

    def _place(self, timestep: Tensor | float, x: Tensor) -> int:
        """The call that is meant: the last one again, or the next at this timestep."""
        places = self._places(timestep)
        later = [i for i in places if i > self._at]
        if self._at in places:
            # where a step left x as it was, as Heun's does in pure noise, the same x means the next call
            same, unmoved = torch.equal(x, self._x), torch.equal(x, self._x_prev)
            if not later or (same and not unmoved):
                return self._at
        return (later or places)[0]
