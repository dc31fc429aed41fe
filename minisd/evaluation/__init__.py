"""How well a model draws what it is asked for: prompts of Sticker World, measures, and figures of them."""

from minisd.evaluation.freedom import free_attributes
from minisd.evaluation.inverting import round_trip
from minisd.evaluation.measures import interval, judge_prompts, psnr, rates, reconstruction, ssim
from minisd.evaluation.pointing import pointing
from minisd.evaluation.suites import suites
from minisd.evaluation.tasks import measure_task

__all__ = [
    "free_attributes",
    "interval",
    "judge_prompts",
    "measure_task",
    "pointing",
    "psnr",
    "rates",
    "reconstruction",
    "round_trip",
    "ssim",
    "suites",
]
