"""The samplers under the courses' names."""

from minisd.course.scheduler import CourseScheduler
from minisd.schedulers import (
    DDIM,
    DDPM,
    LCM,
    LMS,
    PNDM,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    UniPC,
)


class DDIMScheduler(CourseScheduler):
    """DDIM."""

    kind = DDIM


class DDPMScheduler(CourseScheduler):
    """DDPM."""

    kind = DDPM


class PNDMScheduler(CourseScheduler):
    """PNDM, the lessons' default: n steps are n + 1 calls."""

    kind = PNDM


class LMSDiscreteScheduler(CourseScheduler):
    """LMS, in sigma space. Begun in the middle, it weighs the slopes there are; the reference as if four."""

    kind = LMS


class EulerDiscreteScheduler(CourseScheduler):
    """Euler, in sigma space."""

    kind = Euler


class EulerAncestralDiscreteScheduler(CourseScheduler):
    """Euler with fresh noise, in sigma space."""

    kind = EulerAncestral


class HeunDiscreteScheduler(CourseScheduler):
    """Heun, in sigma space: n steps are 2 n - 1 calls."""

    kind = Heun


class DPMSolverMultistepScheduler(CourseScheduler):
    """DPM-Solver++."""

    kind = DPMSolverMultistep


class UniPCMultistepScheduler(CourseScheduler):
    """UniPC."""

    kind = UniPC


class LCMScheduler(CourseScheduler):
    """LCM."""

    kind = LCM
