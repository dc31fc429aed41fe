"""Measure Imagic: how often one colour of a given image is changed by a prompt, while the other object stays."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from minisd import images
from minisd.editing.imagic import Settings, draw_edit, train_edit
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import Rate
from minisd.sticker.evaluation.prompt_suites import suite_examples, write_prompt
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.palette import COLOURS, PALETTE, pixel_differences
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene
from minisd.training.denoising import training_side

ETAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MIN_OVERLAP = 0.8  # intersection over union of the other object before and after


class EditRates(NamedTuple):
    """Rates of edits: as the prompt says, with the other object in its place; for each eta, and for the best eta."""

    at: dict[float, Rate]
    best: Rate


def measure_edits(
    sd: StableDiffusion,
    count: int,
    seed: int,
    folder: Path,
    settings: Settings | None = None,
    label: str | None = None,
) -> EditRates:
    """Edit `count` true images of two objects: the first one gets another colour. Each is trained in `folder`."""
    kept = []
    scenes = [example.scene for example in suite_examples("two", count, seed, sd.defaults.words)]
    for k, scene in enumerate(tqdm(scenes, desc=label, leave=False, disable=None if label else True)):
        changed = _recoloured(scene, seed + k)
        prompt = write_prompt(changed, "shape colour relation", torch.Generator().manual_seed(seed + k))
        given = render([scene], training_side(sd))
        edit = train_edit(sd, given, prompt, folder / f"{k:03d}", settings)
        drawn = draw_edit(sd, edit, ETAS, seed).images
        other = scene.objects[1].colour
        kept.append([is_edit(images.from_pil(image)[0], given[0], prompt, other) for image in drawn])
    at = {eta: Rate(sum(column), count) for eta, column in zip(ETAS, zip(*kept, strict=True), strict=True)}
    return EditRates(at, Rate(sum(map(any, kept)), count))


def is_edit(image: Tensor, given: Tensor, prompt: str, other: str) -> bool:
    """Whether an image (3, N, N) is what the prompt says, and what has the colour `other` is where it was."""
    before, after = (colour_mask(each, other) for each in (given, image))
    overlap = (before & after).sum() / (before | after).sum().clamp(min=1)
    return bool(overlap >= MIN_OVERLAP) and check(image, prompt).exact


def colour_mask(image: Tensor, colour: str) -> Tensor:
    """The pixels (N, N) of an image (3, N, N) whose nearest colour is this one."""
    return pixel_differences(image).argmin(-1) == list(PALETTE).index(colour)


def _recoloured(scene: Scene, seed: int) -> Scene:
    """The scene with another colour of its first object, which the scene does not have yet."""
    taken = {obj.colour for obj in scene.objects}
    free = [colour for colour in COLOURS if colour not in taken]
    colour = free[int(torch.randint(len(free), (), generator=torch.Generator().manual_seed(seed)))]
    return replace(scene, objects=(replace(scene.objects[0], colour=colour), scene.objects[1]))
