"""Train a task variant: the weights that another task adds to a UNet, which itself stays frozen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from minisd.adapters.task_variants import NOISE_LEVELS, Variant, empty_unet
from minisd.models import VAE
from minisd.pipeline import StableDiffusion
from minisd.pipeline.initial_latents import to_unit_range
from minisd.sticker.training.dataset import (
    sample_training_scene,
    scenes_fingerprint,
    training_scenes,
    write_training_caption,
)
from minisd.sticker.training.diffusion import (
    EMPTY_PROMPTS,
    SCHEDULE,
    encode_scenes,
    prompt_ids,
    sample_timesteps,
    velocity_loss,
)
from minisd.sticker.world.captions import select_content
from minisd.sticker.world.render import depth, draw_layers, render
from minisd.sticker.world.scene import Scene
from minisd.training.run_files import fingerprint
from minisd.training.trainer import Recipe, TrainingRun, train

LEAST_MARGIN, MORE_MARGIN = 2 / 64, 8 / 64  # shares of the side: of a mask around an object


class TaskPool(NamedTuple):
    """Scenes with everything that is computed once: their latents, and the condition of the task."""

    scenes: list[Scene]
    latents: Tensor
    condition: Tensor  # (N, C, h, w): mask and masked latents; depth map; small image before noise is added


def train_variant(sd: StableDiffusion, task: str, run: TrainingRun, pool: int = 8_000, batch: int = 24) -> Variant:
    """Train the variant of `sd` for a task; returns the moving average.

    Raises InputError for an unknown task, and what `train` raises for the run's file.
    """
    start_model = fingerprint(sd.unet, sd.vae, sd.text_encoder)
    run = run.of(task=task, start_model=start_model, pool=pool, batch=batch, scenes=scenes_fingerprint())
    run.check()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        variant = Variant(sd.unet, task)
    unet = sd.unet.requires_grad_(False)
    frozen = empty_unet(unet, task).requires_grad_(False)
    rest = unet.state_dict()
    seed = 1 + (dist.get_rank() if dist.is_initialized() else 0)
    chosen = _related_pairs(pool, seed) if task == "depth" else training_scenes(pool, seed)
    scenes, latents, conditions = make_task_pool(sd.vae, task, chosen, torch.Generator().manual_seed(seed))
    run.report(f"{pool} scenes encoded for {task}")

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(pool, (batch,), generator=generator)
        x0, condition, noise_level = latents[rows], conditions[rows], None
        if task == "upscaling":
            noise_level = torch.randint(NOISE_LEVELS, (batch,), generator=generator)
            noise = torch.randn(condition.shape, generator=generator)
            condition = sd.low_res.add_noise(condition, noise, noise_level)
        dropped = torch.rand(batch, generator=generator) < EMPTY_PROMPTS
        captions = [_caption(scenes[row], task, generator) for row in rows.tolist()]
        ids = prompt_ids(sd.tokenizer, captions, dropped, progress)
        with torch.no_grad():
            text = sd.text_encoder(ids)
        t = sample_timesteps(batch, generator)
        noise = torch.randn(x0.shape, generator=generator)
        channels = torch.cat([SCHEDULE.add_noise(x0, noise, t), condition], dim=1)
        weights = {**rest, **variant.weights(unet)}
        prediction = functional_call(frozen, weights, (channels, t, text, noise_level), strict=True)
        return velocity_loss(prediction, x0, noise, t)

    return train(variant, loss, Recipe(learning_rate=2e-3, warmup_steps=100, autocast="bfloat16"), run)


def _related_pairs(count: int, seed: int) -> list[Scene]:
    """Scenes of two different objects: with a given depth map, only which of them is which must be learned."""
    generator = torch.Generator().manual_seed(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_training_scene(generator)
        if scene.relation is not None:
            scenes.append(scene)
    return scenes


def _caption(scene: Scene, task: str, generator: torch.Generator) -> str:
    """A true caption; for depth maps, half of them omit relation and positions, so that shapes must be told apart."""
    content = select_content(scene, generator)
    if task == "depth" and torch.rand((), generator=generator) < 0.5:
        objects = tuple(replace(obj, position=None) for obj in content.objects)
        content = replace(content, relation=None, objects=objects)
    return write_training_caption(content, generator)


def make_task_pool(vae: VAE, task: str, scenes: Sequence[Scene], generator: torch.Generator) -> TaskPool:
    """Encode scenes, and compute the condition of the task in the same way as the pipeline."""
    latents = encode_scenes(vae, list(scenes))
    size, cells = vae.config.sample_size, latents.shape[-1]
    parts = []
    for start in range(0, len(scenes), 64):
        some = scenes[start : start + 64]
        if task == "depth":
            parts.append(to_unit_range(F.interpolate(depth(some, size), size=(cells, cells), mode="bicubic")))
        elif task == "upscaling":
            parts.append(F.interpolate(render(some, size), size=(cells, cells), mode="area"))
        else:
            hidden = inpainting_masks(some, size, generator)
            with torch.no_grad():
                kept = vae.encode(render(some, size) * (1 - hidden)).mean * vae.config.scaling_factor
            parts.append(torch.cat([F.interpolate(hidden, size=(cells, cells)), kept], dim=1))
    return TaskPool(list(scenes), latents, torch.cat(parts))


def inpainting_masks(scenes: Sequence[Scene], size: int, generator: torch.Generator) -> Tensor:
    """Masks (B, 1, size, size): a box around an object and its shadow (70 %), a random box (20 %), or all (10 %)."""
    drawn, boxes = torch.stack(draw_layers(scenes, size)).amax(0), torch.zeros(len(scenes), 1, size, size)
    for b, scene in enumerate(scenes):
        draws = torch.rand(5, generator=generator).tolist()
        if draws[0] < 0.1:
            boxes[b] = 1
            continue
        if draws[0] < 0.8:
            rows, columns = (drawn[b, int(draws[1] * len(scene.objects))] > 0).nonzero().T
            margin = int(size * (LEAST_MARGIN + MORE_MARGIN * draws[2]))
            top, left = int(rows.min()) - margin, int(columns.min()) - margin
            bottom, right = int(rows.max()) + 1 + margin, int(columns.max()) + 1 + margin
        else:
            top, left = int(draws[1] * size * 0.7), int(draws[2] * size * 0.7)
            bottom, right = top + int(size * (0.2 + 0.5 * draws[3])), left + int(size * (0.2 + 0.5 * draws[4]))
        boxes[b, 0, max(top, 0) : bottom, max(left, 0) : right] = 1
    return boxes
