"""Gradient checkpointing of embeddings, students and Imagic: the same gradients, and much less is kept for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import steps_of
from support.small import small_pipeline
from support.training_images import training_images
from torch import Tensor

from minisd.editing import imagic
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM
from minisd.training import distillation, guidance_distillation, textual_inversion


def embedding(sd: StableDiffusion, folder: Path, active: bool) -> None:
    run, pictures = steps_of(folder / "run.pt", 1), training_images("a <x> cat")
    textual_inversion.train_embedding(sd, pictures, "<x>", "cat", run, batch=2, checkpointing=active)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 64, generator=generator)


def progressive(sd: StableDiffusion, folder: Path, active: bool) -> None:
    scheduler = DDIM(sd.scheduler.schedule, timestep_spacing="trailing", steps_offset=0)
    run = steps_of(folder / "run.pt", 1)
    distillation.train_student(sd.unet, scheduler, 2, draw, run, checkpointing=active)


def guided(sd: StableDiffusion, folder: Path, active: bool) -> None:
    run, empty = steps_of(folder / "run.pt", 1), torch.zeros(1, 77, 64)
    guidance_distillation.train_guided(sd.unet, sd.scheduler.schedule, draw, empty, run, checkpointing=active)


def edit(sd: StableDiffusion, folder: Path, active: bool) -> None:
    settings = imagic.Settings(state_steps=1, unet_steps=1, batch=2, gradient_checkpointing=active)
    imagic.train_edit(sd, training_images("a cat", 1).pixels, "a red cat", folder, settings)


@pytest.mark.parametrize("train", [embedding, progressive, guided, edit])
def test_the_same_gradients_and_less_is_kept(
    train: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[tuple[Any, Any]] = []
    for module in (textual_inversion, distillation, guidance_distillation, imagic):
        monkeypatch.setattr(module, "train", lambda model, loss, *others: caught.append((model, loss)) or model)
    gradients, kept = [], []
    for active in (False, True):
        train(small_pipeline(sd2=True), tmp_path / str(active), active)
        for model, loss in caught:
            sizes: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
                value = loss(torch.Generator().manual_seed(3), 0.0)
            value.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            kept.append(sum(sizes))
        caught.clear()
    half = len(kept) // 2
    assert half == (2 if train is edit else 1)
    for k in range(half):
        assert kept[half + k] < 0.6 * kept[k]
        assert any(each.abs().max() > 0 for each in gradients[k])
        for one, other in zip(gradients[k], gradients[half + k], strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)
