"""Train what another task changes of a UNet, which itself stays as it is."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from minisd.adapters.task_variants import NOISE_LEVELS, Variant, blank
from minisd.models import VAE
from minisd.pipeline import StableDiffusion
from minisd.pipeline.initial_latents import to_unit_range
from minisd.sticker.training.dataset import SHORT, lessons, sample_lesson
from minisd.sticker.training.unet import NO_CAPTION, SCHEDULE, expected_loss, latent_pool, sample_timesteps
from minisd.sticker.world.captions import describe, mention
from minisd.sticker.world.render import depth, layers, render
from minisd.sticker.world.scene import Scene
from minisd.training.trainer import Recipe, train

SMALLER = 4  # an upscaler's picture, along one side


class Pool(NamedTuple):
    """Scenes, their latents, and what the task gives: everything that can be computed once."""

    scenes: list[Scene]
    latents: Tensor
    given: Tensor  # (N, C, h, w): mask and masked latents; depth; the small picture before it is noised


def train_variant(
    sd: StableDiffusion,
    task: str,
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    pool: int = 8_000,
    batch: int = 24,
    steps: int | None = None,
) -> Variant:
    """Train the changes of `sd` for a task, or continue the run at `path`, for `minutes` or `steps` in all.

    Returns the moving average. Raises InputError for an unknown task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        variant = Variant(sd.unet, task)
    unet = sd.unet.requires_grad_(False)
    frozen = blank(unet, task).requires_grad_(False)
    rest = unet.state_dict()
    seed = 1 + (dist.get_rank() if dist.is_initialized() else 0)
    scenes = _pairs(pool, seed) if task == "depth" else lessons(pool, seed)
    lesson = make_pool(sd.vae, task, scenes, torch.Generator().manual_seed(seed))
    report(f"{pool} scenes encoded for {task}")

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(pool, (batch,), generator=generator)
        x0, given = lesson.latents[rows], lesson.given[rows]
        noise_level = None
        if task == "upscaling":
            noise_level = torch.randint(NOISE_LEVELS, (batch,), generator=generator)
            given = sd.low_res.add_noise(given, torch.randn(given.shape, generator=generator), noise_level)
        dropped = (torch.rand(batch, generator=generator) < NO_CAPTION).tolist()
        captions = [_caption(lesson.scenes[row], task, generator) for row in rows.tolist()]
        ids = sd.tokenizer(["" if drop else text for drop, text in zip(dropped, captions, strict=True)])
        ids = ids[:, :SHORT] if progress < 0.7 else ids
        with torch.no_grad():
            text = sd.text_encoder(ids)
        t = sample_timesteps(batch, generator)
        noise = torch.randn(x0.shape, generator=generator)
        seen = torch.cat([SCHEDULE.add_noise(x0, noise, t), given], dim=1)
        weights = {**rest, **variant.weights(unet)}
        prediction = functional_call(frozen, weights, (seen, t, text, noise_level), strict=True)
        each = (prediction.float() - SCHEDULE.velocity(x0, noise, t)).square().mean((1, 2, 3))
        return (each / expected_loss(t)).mean()

    recipe = Recipe(minutes, steps, learning_rate=2e-3, warmup_steps=100, bfloat16=True)
    return train(variant, loss, recipe, path, report)


def _pairs(count: int, seed: int) -> list[Scene]:
    """Scenes of two unlike things: with their depth given, which of them is which is all that is left to find out."""
    generator = torch.Generator().manual_seed(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_lesson(generator)
        if scene.relation is not None:
            scenes.append(scene)
    return scenes


def _caption(scene: Scene, task: str, generator: torch.Generator) -> str:
    """A true one; half of those for a depth map leave out how things stand: shapes alone must tell them apart."""
    wanted = mention(scene, generator)
    if task == "depth" and torch.rand((), generator=generator) < 0.5:
        things = tuple(replace(thing, position=None) for thing in wanted.things)
        wanted = replace(wanted, relation=None, things=things)
    return describe(wanted, generator)


def make_pool(vae: VAE, task: str, scenes: Sequence[Scene], generator: torch.Generator) -> Pool:
    """Encode scenes and what a task gives with them, just as the pipeline does."""
    latents = latent_pool(vae, list(scenes))
    size, cells = vae.config.sample_size, latents.shape[-1]
    parts = []
    for start in range(0, len(scenes), 64):
        some = scenes[start : start + 64]
        if task == "depth":
            parts.append(to_unit_range(F.interpolate(depth(some, size), size=(cells, cells), mode="bicubic")))
        elif task == "upscaling":
            parts.append(F.interpolate(render(some, size), size=(size // SMALLER,) * 2, mode="area"))
        else:
            hidden = holes(some, size, generator)
            with torch.no_grad():
                kept = vae.encode(render(some, size) * (1 - hidden)).mean * vae.config.scaling_factor
            parts.append(torch.cat([F.interpolate(hidden, size=(cells, cells)), kept], dim=1))
    return Pool(list(scenes), latents, torch.cat(parts))


def holes(scenes: Sequence[Scene], size: int, generator: torch.Generator) -> Tensor:
    """What to paint anew, (B, 1, size, size): a box around one of the things with its shadow, anywhere, or all."""
    drawn, boxes = torch.stack(layers(scenes, size)).amax(0), torch.zeros(len(scenes), 1, size, size)
    for b, scene in enumerate(scenes):
        draws = torch.rand(5, generator=generator).tolist()
        if draws[0] < 0.1:
            boxes[b] = 1
            continue
        if draws[0] < 0.8:
            rows, columns = (drawn[b, int(draws[1] * len(scene.things))] > 0).nonzero().T
            margin = 2 + int(draws[2] * 8)
            top, left = int(rows.min()) - margin, int(columns.min()) - margin
            bottom, right = int(rows.max()) + 1 + margin, int(columns.max()) + 1 + margin
        else:
            top, left = int(draws[1] * size * 0.7), int(draws[2] * size * 0.7)
            bottom, right = top + int(size * (0.2 + 0.5 * draws[3])), left + int(size * (0.2 + 0.5 * draws[4]))
        boxes[b, 0, max(top, 0) : bottom, max(left, 0) : right] = 1
    return boxes
