"""Distillation of guidance: a student learns to predict in one call what guidance makes of two.

Meng et al. 2023, section 3.1. The student is the teacher, and reads the scale of the guidance beside the timestep.
"""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from minisd._internal import validation
from minisd.errors import InputError
from minisd.models import UNet
from minisd.schedulers import NoiseSchedule
from minisd.training.checkpointing import gradient_checkpointing
from minisd.training.distillation import Batch
from minisd.training.run_files import fingerprint
from minisd.training.trainer import Recipe, TrainingRun, train

WIDTH = 256  # of the sinusoids of the scale, as in the published latent consistency models
SCALES = (1.0, 8.0)
RECIPE = Recipe(learning_rate=3e-4, warmup_steps=50, decay_fraction=0.5)


def guided_student(teacher: UNet, width: int = WIDTH) -> UNet:
    """A copy of the teacher that also reads the guidance scale, which changes nothing at first.

    Raises InputError for a teacher that reads it already.
    """
    if teacher.config.guidance_width is not None:
        raise InputError("the UNet has learned guidance already, expected one that is guided by two calls.")
    student = UNet(replace(teacher.config, guidance_width=width))
    student.load_state_dict(teacher.state_dict(), strict=False)
    nn.init.zeros_(student.guidance.weight)
    return student.to(teacher.conv_in.weight)


def train_guided(
    teacher: UNet,
    schedule: NoiseSchedule,
    draw: Callable[[torch.Generator], Batch],
    empty: Tensor,
    run: TrainingRun,
    scales: tuple[float, float] = SCALES,
    recipe: Recipe = RECIPE,
    width: int = WIDTH,
    checkpointing: bool = False,
) -> UNet:
    """Train a UNet that predicts what guidance of the teacher gives; returns the moving average.

    draw: gives a batch. empty: the text states (1, L, context_width) of the empty prompt. scales: the smallest and the
    largest; each image of a batch gets one between them. checkpointing: compute activations twice, which needs less
    memory. Raises InputError for scales in the wrong order and what `guided_student` raises, and what `train` raises
    for the run's file.
    """
    low, high = (validation.guidance(each) for each in scales)
    if not low < high:
        raise InputError(f"scales is {scales}, expected two numbers, the smaller one first.")
    student = guided_student(teacher, width)
    about = {"schedule": asdict(schedule), "teacher": fingerprint(teacher), "empty": fingerprint(empty)}
    run = run.of(scales=[low, high], width=width, **about)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        x0, text = draw(generator)
        t = torch.randint(schedule.num_train_timesteps, (len(x0),), generator=generator)
        scale = low + (high - low) * torch.rand(len(x0), generator=generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x, t, scale = schedule.add_noise(x0, noise, t), t.to(x0.device), scale.to(x0)
        target = guided_prediction(teacher, x, t, text, empty, scale)
        with gradient_checkpointing(student, checkpointing):
            return mse_loss(student(x, t, text, guidance=scale).float(), target)

    return train(student, loss, recipe, run)


@torch.no_grad()
def guided_prediction(unet: UNet, x: Tensor, t: Tensor, text: Tensor, empty: Tensor, scale: Tensor) -> Tensor:
    """What guidance makes of two predictions: x (B, C, h, w), timesteps (B,), scales (B,) -> (B, C, h, w)."""
    both = torch.cat([empty.expand_as(text), text])
    uncond, cond = unet(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
    return torch.lerp(uncond, cond, scale.view(-1, 1, 1, 1))
