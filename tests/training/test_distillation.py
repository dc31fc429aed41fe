"""Progressive distillation: the target is two steps of the teacher, the student learns it, killed runs continue."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.runs import check_killed_runs, steps_of
from torch import Tensor

from minisd.configs import UNetConfig
from minisd.errors import InputError, ResumeError
from minisd.models import UNet
from minisd.schedulers import DDIM, NoiseSchedule
from minisd.schedulers.schedule import PREDICTION_TYPES
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
    with pytest.raises(InputError, match=r"steps"):
        halvings(first, last)


def test_each_step_of_the_teacher_ends_where_the_next_one_begins() -> None:
    grid = teacher_grid(ddim("v_prediction"), 16)  # 1000 / 32 is no whole number
    assert grid.previous == (*grid.source[1:], -1)
    assert grid.source[::2] == ddim("v_prediction").grid(16).source


def test_a_spacing_in_which_the_steps_do_not_meet_is_refused() -> None:
    with pytest.raises(InputError, match="'leading', expected 'trailing'"):
        teacher_grid(DDIM(), 4)


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


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random latents with one of two texts."""
    rows = torch.randint(2, (8,), generator=generator)
    return torch.randn(8, 4, 8, 8, generator=generator) * 0.5, TEXTS[rows]


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
    run = steps_of(tmp_path / "run.pt", 25)
    recipe = replace(RECIPE, learning_rate=1e-3, warmup_steps=5, ema_decay=0.9)
    student = train_student(unet, scheduler, 4, draw, run, 4.0, EMPTY, recipe)
    assert error(student, scheduler, 4.0) < 0.7 * error(unet, scheduler, 4.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher().parameters(), unet.parameters(), strict=True))
    with pytest.raises(ResumeError, match="guidance scale"):
        train_student(unet, scheduler, 4, draw, run, 2.0, EMPTY, recipe)
    with pytest.raises(InputError, match="states of the empty prompt"):
        train_student(unet, scheduler, 4, draw, run, 2.0)


def test_a_killed_run_ends_in_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_to(path: Path) -> dict[str, Tensor]:
        return train_student(teacher(), ddim("v_prediction"), 2, draw, steps_of(path, 12)).state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)
