"""The noise schedule, and one file a sampler: from noise to picture, by a model that predicts the noise."""

from minisd.schedulers.base import Grid, Scheduler, Step
from minisd.schedulers.ddim import DDIM
from minisd.schedulers.ddpm import DDPM
from minisd.schedulers.lms import LMS
from minisd.schedulers.pndm import PNDM
from minisd.schedulers.schedule import NoiseSchedule
from minisd.schedulers.spacing import validate_steps

__all__ = ["DDIM", "DDPM", "LMS", "PNDM", "Grid", "NoiseSchedule", "Scheduler", "Step", "validate_steps"]
