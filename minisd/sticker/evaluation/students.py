"""Compare a distilled student with its teacher: its predictions with the guided ones, and the time of an image."""

import statistics
import time
from typing import NamedTuple

import torch

from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.world.render import render
from minisd.training.guidance_distillation import guided_prediction

SUITE = "two"
BATCH = 32
REPEATS = 9  # images whose time is measured


class Seconds(NamedTuple):
    """Medians of an image's time, drawn with one and the other pipeline in turn."""

    student: float
    teacher: float


@torch.no_grad()
def prediction_error(student: StableDiffusion, teacher: StableDiffusion, count: int, seed: int) -> float:
    """The mean square of the difference between both predictions, over that of the guided one.

    The student predicts in one call, the teacher in two, at its default scale, of `count` true images of two objects
    with noise at evenly spaced timesteps.
    """
    examples = suite_examples(SUITE, count, seed, teacher.defaults.words)
    generator = torch.Generator().manual_seed(seed)
    schedule = teacher.scheduler.schedule
    difference = size = 0.0
    for k in range(0, count, BATCH):
        some = examples[k : k + BATCH]
        x0 = teacher.encode(render([each.scene for each in some], teacher.vae.config.sample_size), generator)
        t = (torch.arange(k, k + len(some)) * schedule.num_train_timesteps) // count
        x = schedule.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
        text = teacher.encode_prompt([each.prompt for each in some])
        scale = torch.full((len(some),), teacher.defaults.guidance_scale)
        target = guided_prediction(teacher.unet, x, t, text, teacher.encode_prompt([""]), scale)
        predicted = student.unet(x, t, text, guidance=scale)
        difference += (predicted - target).square().sum().item()
        size += target.square().sum().item()
    return difference / size


def image_seconds(student: StableDiffusion, teacher: StableDiffusion, prompt: str) -> Seconds:
    """The time from a prompt to pixels, each with its own number of steps; the first image of each is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 1):
        for sd, each in zip((student, teacher), times, strict=True):
            began = time.perf_counter()
            sd(prompt, seed=0, output_type="pt")
            each.append(time.perf_counter() - began)
    return Seconds(*(statistics.median(each[1:]) for each in times))
