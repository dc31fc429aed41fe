"""Progressive distillation: a student learns to make in one step of DDIM what its teacher makes in two.

Salimans and Ho 2022, algorithm 2. The student begins as its teacher. When it has learned, it is the teacher of the
next student, which makes half as many steps.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.errors import InputError
from minisd.models import UNet
from minisd.pipeline.guidance import combine
from minisd.schedulers import DDIM
from minisd.schedulers.base import Grid
from minisd.training.checkpointing import gradient_checkpointing
from minisd.training.run_files import fingerprint
from minisd.training.trainer import Recipe, TrainingRun, train

Predict = Callable[[Tensor, Tensor], Tensor]  # x (B, ...) and the timestep () -> the model's output (B, ...)
Batch = tuple[Tensor, Tensor]  # latents (B, C, h, w) of unit variance, text states (B, L, context_width)
STEPS_A_BATCH = 4  # a batch has images at this many steps of the student
RECIPE = Recipe(learning_rate=3e-4, warmup_steps=50, decay_fraction=1.0)


def halvings(first: int, last: int) -> list[int]:
    """The steps of each student: first / 2, ... down to last. Raises InputError unless halving leads there."""
    first, last = (validation.whole_number(steps, "steps", 1, 500) for steps in (first, last))
    students, steps = [], first
    while steps > last and steps % 2 == 0:
        steps //= 2
        students.append(steps)
    if not students or steps != last:
        raise InputError(f"the steps are to become {last} from {first}, expected to reach this by halving, as 32 to 4.")
    return students


def teacher_grid(scheduler: DDIM, steps: int) -> Grid:
    """The grid of a teacher of a student with so many steps: each of the student's steps in two halves.

    Raises InputError where a step cannot be halved.
    """
    student = scheduler.grid(steps)
    ends = [max(end, -1) for end in student.previous]  # below 0 is the clean image
    middle = tuple((start + end) // 2 for start, end in zip(student.source, ends, strict=True))
    if not all(start > half > end for start, half, end in zip(student.source, middle, ends, strict=True)):
        raise InputError(f"steps is {steps}, expected steps of two timesteps or more, which the teacher can halve.")
    source = tuple(chain.from_iterable(zip(student.source, middle, strict=True)))
    previous = tuple(chain.from_iterable(zip(middle, student.previous, strict=True)))
    return Grid(torch.tensor(source), source, previous)


@torch.no_grad()
def two_step_target(teacher: Predict, scheduler: DDIM, grid: Grid, k: int, x: Tensor) -> Tensor:
    """The x0 with which the student's step k ends where two steps of the teacher end (Salimans and Ho 2022, app. G).

    x: (B, ...) at the beginning of the step; grid: that of the teacher.
    """
    end = x
    for i in (2 * k, 2 * k + 1):
        end = scheduler.step(grid, i, end, teacher(end, grid.timesteps[i])).x_prev
    before = scheduler.schedule.alpha_bar(grid.source[2 * k])
    after = scheduler.schedule.alpha_bar(grid.previous[2 * k + 1], clean=_clean(scheduler))
    ratio = math.sqrt((1 - after) / (1 - before))
    return (end - ratio * x) / (math.sqrt(after) - ratio * math.sqrt(before))


def _clean(scheduler: DDIM) -> float:
    """The level at the end of a run."""
    return 1.0 if scheduler.set_alpha_to_one else scheduler.schedule.alpha_bar(0)


def step_loss(student: Predict, scheduler: DDIM, grid: Grid, k: int, x: Tensor, target: Tensor) -> Tensor:
    """The mean square error of the student's x0, weighted by SNR + 1: the error of v, for any prediction type.

    -> scalar.
    """
    alpha_bar = scheduler.schedule.alpha_bar(grid.source[2 * k])
    x0, _ = scheduler.schedule.x0_and_eps(x, student(x, grid.timesteps[2 * k]).float(), alpha_bar)
    return (x0 - target).square().mean() / (1 - alpha_bar)


def train_student(
    teacher: UNet,
    scheduler: DDIM,
    steps: int,
    draw: Callable[[torch.Generator], Batch],
    run: TrainingRun,
    guidance_scale: float | tuple[float, float] = 1.0,
    empty: Tensor | None = None,
    recipe: Recipe = RECIPE,
    checkpointing: bool = False,
) -> UNet:
    """Train a UNet that makes `steps` steps, from a teacher that makes twice as many; returns the moving average.

    draw: gives a batch. guidance_scale: that of the teacher; the student learns the guided prediction, and is sampled
    without guidance. empty: the text states (1, L, context_width) of the empty prompt, for guidance. A teacher that has
    learned guidance has no need of them: its scale is drawn from a range, and the student reads it as well.
    checkpointing: compute activations twice, which needs less memory.
    Raises InputError for a scale without `empty`, or a range for another teacher, what `teacher_grid` raises, and what
    `train` raises.
    """
    reads_scale = teacher.config.guidance_width is not None
    low, high = (guidance_scale,) * 2 if isinstance(guidance_scale, int | float) else guidance_scale
    if low != high and not reads_scale:
        raise InputError(f"guidance_scale is {guidance_scale}, expected one number: this UNet cannot read it.")
    if low != 1 and empty is None and not reads_scale:
        raise InputError(f"guidance_scale is {low:g}, expected empty, the states of the empty prompt, too.")
    scheduler = replace(scheduler, eta=0.0)
    grid = teacher_grid(scheduler, steps)
    student = copy.deepcopy(teacher).requires_grad_(True)
    run = run.of(steps=steps, guidance_scale=low if low == high else [low, high], teacher=fingerprint(teacher))
    run = run.of(schedule=asdict(scheduler.schedule), grid=list(grid.source))

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        x0, text = draw(generator)
        parts = min(STEPS_A_BATCH, len(x0))
        spread = (torch.arange(parts) + torch.rand(1, generator=generator, dtype=torch.float64)) * steps / parts
        total = torch.zeros((), device=x0.device)
        chosen = zip(spread.long().tolist(), x0.tensor_split(parts), text.tensor_split(parts), strict=True)
        for k, clean, states in chosen:
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            x = scheduler.schedule.add_noise(clean, noise, grid.source[2 * k])
            scale = low + (high - low) * torch.rand(len(x), generator=generator).to(x) if reads_scale else None
            guided = _predict(teacher, states, scale) if reads_scale else _guided(teacher, states, empty, low)
            target = two_step_target(guided, scheduler, grid, k, x)
            with gradient_checkpointing(student, checkpointing):
                error = step_loss(_predict(student, states, scale), scheduler, grid, k, x, target)
            total = total + len(x) * error
        return total / len(x0)

    return train(student, loss, recipe, run)


def _predict(unet: UNet, text: Tensor, scale: Tensor | None = None) -> Predict:
    return lambda x, t: unet(x, t, text, guidance=scale)


def _guided(unet: UNet, text: Tensor, empty: Tensor | None, scale: float) -> Predict:
    """The prediction with classifier-free guidance; that for the text alone at scale 1."""
    if scale == 1 or empty is None:
        return _predict(unet, text)
    both = torch.cat([empty.expand_as(text), text])

    def predict(x: Tensor, t: Tensor) -> Tensor:
        uncond, cond = unet(x, t, both).chunk(2)
        return combine(uncond, cond, scale)

    return predict
