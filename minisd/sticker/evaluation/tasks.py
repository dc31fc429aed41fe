"""Measure the task variants: replace an object (inpainting), recolour a scene (depth), enlarge an image (upscaling)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minisd._internal.image_quality import psnr
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import BATCH, Rate
from minisd.sticker.evaluation.prompt_suites import suite_examples, write_prompt
from minisd.sticker.world.checker.check import Verdict, check
from minisd.sticker.world.palette import COLOURS, rgb
from minisd.sticker.world.render import depth, masks, render
from minisd.sticker.world.scene import Scene
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.splits import held_out

MASK_MARGIN = 3 / 64  # share of the side, around the objects
Measurements = Mapping[str, float | dict[str, float]]
Draw = Callable[[list[str], Mapping[str, Any]], Tensor]


def measure_task(
    sd: StableDiffusion, count: int, seed: int, steps: int | None = None, label: str | None = None
) -> Measurements:
    """Measure a variant on `count` scenes of the task that it was made for; the values are rates, an IoU or in dB."""

    def draw(prompts: list[str], conditions: Mapping[str, Any]) -> Tensor:
        """Generate an image for each prompt; tensors among the conditions have a row for each prompt."""
        parts = []
        for k in tqdm(range(0, count, BATCH), desc=label, leave=False, disable=None if label else True):
            rows = slice(k, min(k + BATCH, count))
            given: dict[str, Any] = {
                name: each[rows] if isinstance(each, Tensor) else each for name, each in conditions.items()
            }
            parts.append(sd(prompts[rows], num_inference_steps=steps, seed=seed + k, output_type="pt", **given).images)
        return torch.cat([part.cpu().float() for part in parts])

    measure = {"inpainting": _measure_inpainting, "depth": _measure_depth, "upscaling": _measure_upscaling}[sd.task]
    return measure(sd, count, seed, draw)


def _measure_inpainting(sd: StableDiffusion, count: int, seed: int, draw: Draw) -> Measurements:
    """Replace the object of a scene by another one of its size.

    exact: the rate of images that the checker finds exact. outside: PSNR outside of the mask, and that of the
    autoencoder alone.
    """
    scenes, size = _scenes("single", sd, count, seed), sd.vae.config.sample_size
    others = [_changed(scene, seed + k, shape=True) for k, scene in enumerate(scenes)]
    prompts = _prompts(others, seed)
    before = render(scenes, size)
    both = torch.maximum(masks(scenes, size), masks(others, size)).amax(1, keepdim=True)
    hidden = _boxes(both)
    after = draw(prompts, {"image": before, "mask_image": hidden})
    again = torch.cat([_reconstructed(sd, part) for part in before.split(BATCH)])
    kept, limit = (psnr(before * (1 - hidden), each * (1 - hidden)).mean().item() for each in (after, again))
    return {"exact": _rate(_check(after, prompts)), "outside": kept, "outside by the autoencoder": limit}


def _measure_depth(sd: StableDiffusion, count: int, seed: int, draw: Draw) -> Measurements:
    """Generate images from the depth map of a scene and a prompt for the same shapes in other colours.

    iou: of the generated and the expected objects; colour and exact: rates by the checker.
    """
    scenes, size = _scenes("two", sd, count, seed), sd.vae.config.sample_size
    others = [_changed(scene, seed + k, shape=False) for k, scene in enumerate(scenes)]
    prompts = _prompts(others, seed)
    after = draw(prompts, {"depth_map": depth(scenes, size)})
    expected = masks(others, size).amax(1) > 0.5
    to_background = _distance(after, [other.background for other in others])
    to_paint = [_distance(after, [other.objects[k].colour for other in others]) for k in (0, 1)]
    drawn = torch.minimum(*to_paint) < to_background
    iou = ((expected & drawn).sum((1, 2)) / (expected | drawn).sum((1, 2))).mean().item()
    verdicts = _check(after, prompts)
    return {"iou": iou, "colour": _rate(verdicts, "colour"), "exact": _rate(verdicts)}


def _measure_upscaling(sd: StableDiffusion, count: int, seed: int, draw: Draw) -> Measurements:
    """Shrink scenes and enlarge them again: mean PSNR in dB and rate of exact images, also of bicubic interpolation."""
    examples, size = suite_examples("two", count, seed, sd.defaults.words), sd.vae.config.sample_size
    prompts = [each.prompt for each in examples]
    before = render([each.scene for each in examples], size)
    small = F.interpolate(before, size=sd.unet.config.cells, mode="area")
    after = draw(prompts, {"image": small, "noise_level": 0})
    smooth = F.interpolate(small, size=(size, size), mode="bicubic").clamp(-1, 1)
    results: dict[str, float | dict[str, float]] = {}
    for name, pixels in (("", after), ("bicubic ", smooth)):
        results[f"{name}psnr"] = psnr(before, pixels).mean().item()
        results[f"{name}exact"] = _rate(_check(pixels, prompts))
    return results


def _scenes(suite: str, sd: StableDiffusion, count: int, seed: int) -> list[Scene]:
    return [example.scene for example in suite_examples(suite, count, seed, sd.defaults.words)]


def _prompts(scenes: list[Scene], seed: int) -> list[str]:
    return [write_prompt(scene, "shape colour background", _generator(seed + k)) for k, scene in enumerate(scenes)]


def _check(pixels: Tensor, prompts: list[str]) -> list[Verdict]:
    return [check(image, prompt) for image, prompt in zip(pixels, prompts, strict=True)]


def _rate(verdicts: list[Verdict], name: str = "exact") -> dict[str, float]:
    return Rate(sum(getattr(verdict, name) for verdict in verdicts), len(verdicts)).as_json()


def _distance(pixels: Tensor, colours: list[str]) -> Tensor:
    """The distance of every pixel to a colour, one colour for each image: -> (B, H, W)."""
    return (pixels - rgb(colours)[:, :, None, None]).square().sum(1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _changed(scene: Scene, seed: int, shape: bool) -> Scene:
    """The scene with other colours, all different, and with other shapes if `shape`; never held out."""
    generator = _generator(seed)
    while True:
        colours = [list(COLOURS)[i] for i in torch.randperm(len(COLOURS), generator=generator).tolist()]
        shapes = [list(SHAPES)[int(torch.randint(len(SHAPES), (), generator=generator))] for _ in scene.objects]
        objects = tuple(
            replace(obj, colour=colour, shape=other if shape else obj.shape)
            for obj, colour, other in zip(scene.objects, colours, shapes, strict=False)
        )
        changed = replace(scene, objects=objects)
        if not held_out(changed):
            return changed


def _boxes(cover: Tensor) -> Tensor:
    """The box around the covered pixels, with MASK_MARGIN on each side: (B, 1, N, N) -> the same, 0 or 1."""
    hidden, margin = torch.zeros_like(cover), round(MASK_MARGIN * cover.shape[-1])
    for each, mask in zip(hidden[:, 0], cover[:, 0] > 0, strict=True):
        rows, columns = mask.nonzero().T
        top, left = max(int(rows.min()) - margin, 0), max(int(columns.min()) - margin, 0)
        each[top : int(rows.max()) + 1 + margin, left : int(columns.max()) + 1 + margin] = 1
    return hidden


@torch.no_grad()
def _reconstructed(sd: StableDiffusion, pixels: Tensor) -> Tensor:
    weight = next(sd.vae.parameters())
    return sd.vae.decode(sd.vae.encode(pixels.to(weight)).mean).clamp(-1, 1).cpu().float()
