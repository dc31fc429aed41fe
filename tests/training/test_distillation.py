"""Progressive distillation: the target is two steps of the teacher, the student learns it, killed runs continue."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import check_killed_runs, steps_of
from torch import Tensor

from minisd.configs import UNetConfig
from minisd.errors import InputError, ResumeError
from minisd.models import UNet
from minisd.schedulers import DDIM, NoiseSchedule
from minisd.schedulers.schedule import PREDICTION_TYPES
from minisd.training import distillation
from minisd.training.distillation import (
    RECIPE,
    halvings,
    step_loss,
    teacher_grid,
    train_student,
    two_step_target,
)


def ddim(kind: str, clean: bool = True) -> DDIM:
    schedule = NoiseSchedule(prediction_type=kind, rescale_betas_zero_snr=kind != "epsilon")
    return DDIM(schedule, timestep_spacing="trailing", set_alpha_to_one=clean)


def wavy(x: Tensor, t: Tensor) -> Tensor:
    """A stand-in for a model, which is not linear."""
    return torch.sin(2 * x) * (0.3 + float(t) / 2000)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_one_step_to_the_target_ends_where_two_steps_end(kind: str, clean: bool) -> None:
    scheduler, steps = ddim(kind, clean), 4
    grid, student = teacher_grid(scheduler, steps), scheduler.grid(steps)
    schedule = scheduler.schedule
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in range(steps):
        target = two_step_target(wavy, scheduler, grid, k, x)
        twice = x
        for i in (2 * k, 2 * k + 1):
            twice = scheduler.step(grid, i, twice, wavy(twice, grid.timesteps[i])).x_prev
        alpha_bar = schedule.alpha_bar(student.source[k])
        if kind == "sample":
            output = target
        elif kind == "epsilon":
            output = (x - alpha_bar**0.5 * target) / (1 - alpha_bar) ** 0.5
        else:
            output = (alpha_bar**0.5 * x - target) / (1 - alpha_bar) ** 0.5
        once = scheduler.step(student, k, x, output).x_prev
        assert torch.allclose(once, twice, atol=1e-6), k
        x = twice


def test_the_loss_is_the_error_of_v() -> None:
    scheduler = ddim("v_prediction")
    grid = teacher_grid(scheduler, 4)
    x, target = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    for k in range(4):
        alpha_bar = scheduler.schedule.alpha_bar(grid.source[2 * k])
        v = (alpha_bar**0.5 * x - target) / (1 - alpha_bar) ** 0.5
        expected = (wavy(x, grid.timesteps[2 * k]) - v).square().mean()
        assert step_loss(wavy, scheduler, grid, k, x, target).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_same_error_counts_alike_for_every_prediction_type() -> None:
    x, target = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    losses = []
    for kind in ("epsilon", "v_prediction", "sample"):
        schedule = NoiseSchedule(prediction_type=kind)
        scheduler = DDIM(schedule, timestep_spacing="trailing")
        grid = teacher_grid(scheduler, 4)
        alpha_bar = schedule.alpha_bar(grid.source[4])
        signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        wrong = target + 0.1
        outputs = {"sample": wrong, "epsilon": (x - signal * wrong) / sigma}
        output = outputs.get(kind, (signal * x - wrong) / sigma)
        losses.append(step_loss(lambda x, t, out=output: out, scheduler, grid, 2, x, target).item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


@pytest.mark.parametrize(("first", "last", "students"), [(32, 2, [16, 8, 4, 2]), (8, 4, [4]), (6, 3, [3])])
def test_halvings(first: int, last: int, students: list[int]) -> None:
    assert halvings(first, last) == students


@pytest.mark.parametrize(("first", "last"), [(32, 5), (8, 8), (4, 8), (0, 0), (7, 1)])
def test_steps_that_halving_does_not_lead_to_are_refused(first: int, last: int) -> None:
    with pytest.raises(InputError, match="steps"):
        halvings(first, last)


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 16, 500])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_the_teacher_halves_each_step_of_the_student(steps: int, spacing: str) -> None:
    scheduler = replace(ddim("sample"), timestep_spacing=spacing)
    grid, student = teacher_grid(scheduler, steps), scheduler.grid(steps)
    assert grid.source[::2] == student.source
    assert grid.previous[1::2] == student.previous
    assert grid.source[1::2] == grid.previous[::2]
    assert grid.timesteps.tolist() == [*grid.source]
    if (steps, spacing) == (4, "trailing"):
        assert grid.source == scheduler.grid(8).source
    assert min(grid.source) >= 0
    assert all(start > end for start, end in zip(grid.source, grid.previous, strict=True))


def test_steps_of_one_timestep_cannot_be_halved() -> None:
    with pytest.raises(InputError, match="steps is 600"):
        teacher_grid(ddim("sample"), 600)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8])
def test_a_batch_of_any_size_trains_all_steps(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()

    def record(teacher: object, scheduler: DDIM, grid: object, k: int, x: Tensor) -> Tensor:
        seen[k] += len(x)
        return x

    monkeypatch.setattr(distillation, "two_step_target", record)
    monkeypatch.setattr(distillation, "train", lambda student, loss, *others: loss)
    some = partial(draw, count=count)
    loss: Any = train_student(teacher(), ddim("v_prediction"), 4, some, steps_of(tmp_path / "a.pt", 1))
    for seed in range(40):
        loss(torch.Generator().manual_seed(seed), 0.0)
    assert sum(seen.values()) == 40 * count
    assert set(seen) == {0, 1, 2, 3}


def teacher() -> UNet:
    """A small UNet with random weights."""
    config = UNetConfig(
        channels=(16, 32), depths=(0, 1), heads=(2, 2), layers_per_block=1, context_width=8, norm_groups=4,
        only_cross_attention=(False, False),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(config)


TEXTS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
EMPTY = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(4))


def draw(generator: torch.Generator, count: int = 8) -> tuple[Tensor, Tensor]:
    """Random latents with one of two texts."""
    rows = torch.randint(2, (count,), generator=generator)
    return torch.randn(count, 4, 8, 8, generator=generator) * 0.5, TEXTS[rows]


@torch.no_grad()
def error(student: UNet, scheduler: DDIM, scale: float) -> float:
    """The student's loss over its four steps, for a teacher that is guided."""
    x0, text = draw(torch.Generator().manual_seed(99))
    grid, unet, total = teacher_grid(scheduler, 4), teacher(), 0.0

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u, c = unet(x, t, EMPTY.expand_as(text)), unet(x, t, text)
        return u + scale * (c - u)

    for k in range(4):
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(k))
        x = scheduler.schedule.add_noise(x0, noise, grid.source[2 * k])
        target = two_step_target(guided, scheduler, grid, k, x)
        total += step_loss(lambda x, t: student(x, t, text), scheduler, grid, k, x, target).item()
    return total


def test_the_student_comes_closer_to_two_steps_of_its_guided_teacher(tmp_path: Path) -> None:
    scheduler, unet = ddim("v_prediction"), teacher()
    run = steps_of(tmp_path / "run.pt", 40)
    recipe = replace(RECIPE, learning_rate=1e-3, warmup_steps=5, ema_decay=0.9)
    student = train_student(unet, scheduler, 4, draw, run, 4.0, EMPTY, recipe)
    assert error(student, scheduler, 4.0) < 0.75 * error(unet, scheduler, 4.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher().parameters(), unet.parameters(), strict=True))
    with pytest.raises(ResumeError, match="guidance scale"):
        train_student(unet, scheduler, 4, draw, run, 2.0, EMPTY, recipe)
    with pytest.raises(InputError, match="states of the empty prompt"):
        train_student(unet, scheduler, 4, draw, run, 2.0)


def test_a_killed_run_ends_in_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_to(path: Path) -> dict[str, Tensor]:
        return train_student(teacher(), ddim("v_prediction"), 2, draw, steps_of(path, 12)).state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)
