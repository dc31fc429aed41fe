"""The noise schedule, and the samplers, one file each: from noise to an image by a model that predicts the noise."""

from minisd.schedulers.base import Grid, Scheduler, Step
from minisd.schedulers.ddim import DDIM
from minisd.schedulers.ddim_inverse import DDIMInverse
from minisd.schedulers.ddpm import DDPM
from minisd.schedulers.dpm_solver import DPMSolverMultistep
from minisd.schedulers.euler import Euler, EulerAncestral
from minisd.schedulers.heun import Heun
from minisd.schedulers.lcm import LCM
from minisd.schedulers.lms import LMS
from minisd.schedulers.pndm import PNDM
from minisd.schedulers.schedule import NoiseSchedule
from minisd.schedulers.spacing import validate_steps
from minisd.schedulers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "LCM",
    "LMS",
    "PNDM",
    "DDIMInverse",
    "DPMSolverMultistep",
    "Euler",
    "EulerAncestral",
    "Grid",
    "Heun",
    "NoiseSchedule",
    "Scheduler",
    "Step",
    "UniPC",
    "validate_steps",
]

Scheduler.samplers = {
    sampler.official_name: sampler
    for sampler in (DDIM, DDPM, DPMSolverMultistep, Euler, EulerAncestral, Heun, LCM, LMS, PNDM, UniPC)
}
