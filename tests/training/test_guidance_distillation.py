"""Distillation of guidance: the loss, a student that begins as its teacher and learns, killed runs, fewer steps."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support.runs import check_killed_runs, steps_of
from support.small import small_pipeline
from torch import Tensor

import weights_loader
from minisd.errors import InputError, ResumeError
from minisd.models import UNet
from minisd.pipeline.guidance import combine
from minisd.schedulers import DDIM, NoiseSchedule
from minisd.sticker.training.dataset import training_scenes
from minisd.sticker.training.diffusion import encode_scenes
from minisd.sticker.world.captions import select_content, write_caption
from minisd.training import distillation, guidance_distillation
from minisd.training.distillation import train_student
from minisd.training.guidance_distillation import guided_prediction, guided_student, train_guided
from minisd.training.trainer import Recipe

EMPTY = torch.zeros(1, 5, 64)
SCHEDULE = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
FAST = Recipe(learning_rate=2e-3, warmup_steps=2, ema_decay=0.9)


def teacher() -> UNet:
    return small_pipeline(sd2=True).unet


def draw(generator: torch.Generator, count: int = 3) -> tuple[Tensor, Tensor]:
    latents, text = (torch.randn(count, *shape, generator=generator) for shape in ((4, 8, 8), (5, 64)))
    return latents, text


def test_the_student_begins_as_its_teacher() -> None:
    unet = teacher()
    student, (x, text) = guided_student(unet, width=8), draw(torch.Generator().manual_seed(0))
    assert student.config.guidance_width == 8
    with torch.no_grad():
        expected = unet(x, 300, text)
        for scale in (1.0, 7.5):
            assert torch.allclose(student(x, 300, text, guidance=scale), expected, atol=1e-6)
    with pytest.raises(InputError, match="has learned guidance already"):
        guided_student(student)


def test_the_loss_is_the_distance_to_the_guided_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    monkeypatch.setattr(guidance_distillation, "train", lambda model, loss, *others: losses.append(loss) or model)
    unet = teacher()
    train_guided(unet, SCHEDULE, draw, EMPTY, steps_of(tmp_path / "run.pt", 1), scales=(1, 5))
    got = losses[0](torch.Generator().manual_seed(3), 0.0).item()
    generator = torch.Generator().manual_seed(3)
    x0, text = draw(generator)
    t, u = torch.randint(1000, (3,), generator=generator), torch.rand(3, generator=generator)
    x = SCHEDULE.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
    total = 0.0
    with torch.no_grad():
        for row in range(3):
            pair = [unet(x[row : row + 1], t[row], states) for states in (EMPTY, text[row : row + 1])]
            target = combine(*pair, scale=1 + 4 * u[row].item())
            total += (pair[1] - target).square().mean().item() / 3  # the student begins as its teacher
    assert got == pytest.approx(total, rel=1e-4)


def test_a_student_of_the_embedded_model_learns_guidance(tmp_path: Path) -> None:
    """Some steps bring it nearer to the guided prediction than its teacher is without guidance."""
    sd, scenes, generator = (
        weights_loader.load("sticker"),
        training_scenes(16, seed=3),
        torch.Generator().manual_seed(0),
    )
    latents, schedule = encode_scenes(sd.vae, scenes), sd.scheduler.schedule
    with torch.no_grad():
        captions = [write_caption(select_content(scene, generator), generator) for scene in scenes]
        text, empty = (sd.text_encoder(sd.tokenizer(prompts)[:, :26]) for prompts in (captions, [""]))

    def few(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(16, (6,), generator=generator)
        return latents[rows], text[rows]

    recipe = Recipe(learning_rate=3e-4, warmup_steps=5, ema_decay=0.8)
    run = steps_of(tmp_path / "run.pt", 20)
    student = train_guided(sd.unet, schedule, few, empty, run, scales=(1, 6), recipe=recipe, width=32)
    t, scale = torch.linspace(100, 999, 16).long(), torch.linspace(2, 6, 16)
    x = schedule.add_noise(latents, torch.randn(latents.shape, generator=generator), t)
    with torch.no_grad():
        target = guided_prediction(sd.unet, x, t, text, empty, scale)
        before = (sd.unet(x, t, text) - target).square().mean()
        assert (student(x, t, text, guidance=scale) - target).square().mean() < 0.85 * before
        change = student(x, t, text, guidance=scale) - student(x, t, text, guidance=scale + 3)
    assert change.abs().max() > 1e-5  # it reads the scale


def test_killed_runs_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_to(path: Path) -> dict[str, Tensor]:
        run = steps_of(path, 12)
        return train_guided(teacher(), SCHEDULE, draw, EMPTY, run, recipe=FAST, width=8).state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)
    with pytest.raises(ResumeError, match="scales is"):
        train_guided(teacher(), SCHEDULE, draw, EMPTY, steps_of(tmp_path / "whole.pt", 20), (1, 3), FAST, 8)


def test_a_student_with_fewer_steps_reads_the_scale_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progressive distillation on top: teacher and student get the same scales, no empty prompt is needed."""
    unet, calls, losses = guided_student(teacher(), width=8), [], []
    torch.nn.init.normal_(unet.guidance.weight)
    hook = partial(_note_scale, calls)
    monkeypatch.setattr(distillation, "train", lambda model, loss, *others: losses.append((model, loss)) or model)
    scheduler = DDIM(SCHEDULE, timestep_spacing="trailing", set_alpha_to_one=True)
    train_student(unet, scheduler, 4, draw, steps_of(tmp_path / "run.pt", 1), guidance_scale=(2.0, 6.0))
    student, loss = losses[0]
    student.register_forward_pre_hook(hook, with_kwargs=True)
    assert loss(torch.Generator().manual_seed(0), 0.0) > 0
    assert len(calls) == 3
    assert all(2 <= float(scale) <= 6 for scale in calls)
    assert len({float(scale) for scale in calls}) == 3
    with pytest.raises(InputError, match="this UNet cannot read it"):
        train_student(teacher(), scheduler, 4, draw, steps_of(tmp_path / "b.pt", 1), guidance_scale=(2.0, 6.0))


def _note_scale(calls: list[Tensor], module: UNet, inputs: object, options: dict[str, Tensor]) -> None:
    calls.append(options["guidance"])


def test_bad_input(tmp_path: Path) -> None:
    for scales in ((3, 1), (2, 2)):
        with pytest.raises(InputError, match="expected two numbers, the smaller one first"):
            train_guided(teacher(), SCHEDULE, draw, EMPTY, steps_of(tmp_path / "run.pt", 1), scales)
    assert not (tmp_path / "run.pt").exists()
