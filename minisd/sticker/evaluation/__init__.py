"""How well a model draws what it is asked for: prompts of Sticker World, measures, and figures of them."""

from minisd.sticker.evaluation.diversity import free_attributes
from minisd.sticker.evaluation.inversion import round_trip
from minisd.sticker.evaluation.metrics import interval, judge_prompts, psnr, rates, reconstruction, ssim
from minisd.sticker.evaluation.pointing_game import pointing
from minisd.sticker.evaluation.prompt_suites import suites
from minisd.sticker.evaluation.tasks import measure_task

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
