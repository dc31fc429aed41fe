"""The samplers under the names of the courses."""

from collections.abc import Mapping
from typing import Any, ClassVar

from minisd import schedulers
from minisd.course.scheduler import CourseScheduler
from minisd.errors import InputError
from minisd.schedulers import Scheduler


class DDIMScheduler(CourseScheduler):
    """DDIM."""

    kind = schedulers.DDIM


class DDPMScheduler(CourseScheduler):
    """DDPM."""

    kind = schedulers.DDPM


class PNDMScheduler(CourseScheduler):
    """PNDM, the default of the courses: n steps are n + 1 calls of the UNet.

    A pipeline's run that starts later has the reference's values, unless whole_first_step is True.
    """

    kind = schedulers.PNDM
    reference_values: ClassVar[Mapping[str, Any]] = {"whole_first_step": False}
    knows_zero_snr = False


class LMSDiscreteScheduler(CourseScheduler):
    """LMS, in sigma space. A run that starts later has the reference's values, unless lower_order_start is True."""

    kind = schedulers.LMS
    reference_values: ClassVar[Mapping[str, Any]] = {"lower_order_start": False}
    knows_zero_snr = False


class EulerDiscreteScheduler(CourseScheduler):
    """Euler, in sigma space."""

    kind = schedulers.Euler


class EulerAncestralDiscreteScheduler(CourseScheduler):
    """Euler with new noise at each step, in sigma space."""

    kind = schedulers.EulerAncestral


class HeunDiscreteScheduler(CourseScheduler):
    """Heun, in sigma space: n steps are 2 n - 1 calls of the UNet."""

    kind = schedulers.Heun
    knows_zero_snr = False


class DPMSolverMultistepScheduler(CourseScheduler):
    """DPM-Solver++."""

    kind = schedulers.DPMSolverMultistep


class UniPCMultistepScheduler(CourseScheduler):
    """UniPC."""

    kind = schedulers.UniPC


class LCMScheduler(CourseScheduler):
    """LCM."""

    kind = schedulers.LCM


COURSE_SCHEDULERS: dict[type[Scheduler], type[CourseScheduler]] = {
    each.kind: each
    for each in (
        DDIMScheduler,
        DDPMScheduler,
        PNDMScheduler,
        LMSDiscreteScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        LCMScheduler,
    )
}


def wrap_scheduler(scheduler: Scheduler | CourseScheduler) -> CourseScheduler:
    """The course scheduler of a sampler of minisd; a CourseScheduler is returned as it is. Raises InputError."""
    if isinstance(scheduler, CourseScheduler):
        return scheduler
    if type(scheduler) not in COURSE_SCHEDULERS:
        names = ", ".join(each.__name__ for each in COURSE_SCHEDULERS.values())
        raise InputError(f"scheduler is {scheduler!r}, expected one of {names}; call one, or its from_config.")
    return COURSE_SCHEDULERS[type(scheduler)].from_core(scheduler)
