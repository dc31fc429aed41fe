"""Evaluation of a model on prompts of Sticker World: measures, judged by the exact checker, and figures of them."""

from minisd._internal.image_quality import psnr, ssim
from minisd.sticker.evaluation.diversity import measure_diversity
from minisd.sticker.evaluation.inversion import measure_inversion
from minisd.sticker.evaluation.judging import judge_prompts, skill_rates, wilson_interval
from minisd.sticker.evaluation.pointing_game import play_pointing_game
from minisd.sticker.evaluation.prompt_suites import sample_prompts
from minisd.sticker.evaluation.reconstruction import measure_reconstruction
from minisd.sticker.evaluation.tasks import measure_task

__all__ = [
    "judge_prompts",
    "measure_diversity",
    "measure_inversion",
    "measure_reconstruction",
    "measure_task",
    "play_pointing_game",
    "psnr",
    "sample_prompts",
    "skill_rates",
    "ssim",
    "wilson_interval",
]
