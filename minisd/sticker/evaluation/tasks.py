"""Do variants do their task?  A thing put into a picture, a drawing of a given structure, a small picture enlarged."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.metrics import BATCH, Rate, psnr
from minisd.sticker.evaluation.prompt_suites import Example, examples, word
from minisd.sticker.training.task_variants import SMALLER
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.palette import COLOURS, rgb
from minisd.sticker.world.render import depth, masks, render
from minisd.sticker.world.scene import Scene
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.splits import held_out

MARGIN = 3  # pixels around what is painted anew
Figures = Mapping[str, float | dict[str, float]]


def measure_task(
    sd: StableDiffusion, count: int, seed: int, steps: int | None = None, label: str | None = None
) -> Figures:
    """Measure a variant at the task that its UNet was made for; every value is a rate, an IoU or in dB."""
    return {"inpainting": inpainting, "depth": structure, "upscaling": upscaling}[sd.task](
        sd, count, seed, steps, label
    )


def inpainting(sd: StableDiffusion, count: int, seed: int, steps: int | None, label: str | None) -> Figures:
    """One thing of a picture taken out and another of its size asked for in its place.

    exact: the checker's verdict on the whole picture. outside: PSNR of what was to be kept, beside the autoencoder's.
    """
    chosen, size = examples("single", count, seed, sd.defaults.words), sd.vae.config.sample_size
    others = [_changed(each.scene, seed + k, shape=True) for k, each in enumerate(chosen)]
    prompts = [word(other, "shape colour background", _generator(seed + k)) for k, other in enumerate(others)]
    before = render([each.scene for each in chosen], size)
    both = torch.maximum(masks([each.scene for each in chosen], size), masks(others, size)).amax(1, keepdim=True)
    hidden = _boxes(both)

    def draw(rows: slice) -> Tensor:
        given = {"image": before[rows], "mask_image": hidden[rows], "seed": seed + rows.start, "output_type": "pt"}
        return sd(prompts[rows], num_inference_steps=steps, **given).images

    after = _in_batches(draw, count, label)
    right = sum(check(picture, prompt).exact for picture, prompt in zip(after, prompts, strict=True))
    again = torch.cat([_reconstructed(sd, part) for part in before.split(BATCH)])
    kept, floor = ((before * (1 - hidden), each * (1 - hidden)) for each in (after, again))
    decibels = {"outside": psnr(*kept).mean().item(), "outside by the autoencoder": psnr(*floor).mean().item()}
    return {"exact": Rate(right, count).as_json(), **decibels}


def structure(sd: StableDiffusion, count: int, seed: int, steps: int | None, label: str | None) -> Figures:
    """The depth of one scene with the words of another that has the same shapes in other colours.

    iou: of what was drawn with where it should be; colour and exact by the checker.
    """
    chosen, size = examples("two", count, seed, sd.defaults.words), sd.vae.config.sample_size
    others = [_changed(each.scene, seed + k, shape=False) for k, each in enumerate(chosen)]
    prompts = [word(other, "shape colour background", _generator(seed + k)) for k, other in enumerate(others)]
    near = depth([each.scene for each in chosen], size)

    def draw(rows: slice) -> Tensor:
        given = {"depth_map": near[rows], "seed": seed + rows.start, "output_type": "pt"}
        return sd(prompts[rows], num_inference_steps=steps, **given).images

    after = _in_batches(draw, count, label)
    wanted = masks(others, size).amax(1) > 0.5
    to_ground = _distance(after, [other.background for other in others])
    to_paint = [_distance(after, [other.things[k].colour for other in others]) for k in (0, 1)]
    drawn = torch.minimum(*to_paint) < to_ground
    iou = ((wanted & drawn).sum((1, 2)) / (wanted | drawn).sum((1, 2))).mean().item()
    verdicts = [check(picture, prompt) for picture, prompt in zip(after, prompts, strict=True)]
    colour, exact = (Rate(sum(getattr(v, name) for v in verdicts), count).as_json() for name in ("colour", "exact"))
    return {"iou": iou, "colour": colour, "exact": exact}


def upscaling(sd: StableDiffusion, count: int, seed: int, steps: int | None, label: str | None) -> Figures:
    """Scenes made small and large again, beside bicubic interpolation: mean PSNR in dB, share of exact pictures."""
    chosen: list[Example] = examples("two", count, seed, sd.defaults.words)
    size = sd.vae.config.sample_size
    before = render([each.scene for each in chosen], size)
    small = F.interpolate(before, size=(size // SMALLER,) * 2, mode="area")

    def draw(rows: slice) -> Tensor:
        prompts = [each.prompt for each in chosen[rows]]
        given = {"image": small[rows], "noise_level": 0, "seed": seed + rows.start, "output_type": "pt"}
        return sd(prompts, num_inference_steps=steps, **given).images

    after = _in_batches(draw, count, label)
    smooth = F.interpolate(small, size=(size, size), mode="bicubic").clamp(-1, 1)
    figures: dict[str, float | dict[str, float]] = {}
    for name, pictures in (("", after), ("bicubic ", smooth)):
        figures[f"{name}psnr"] = psnr(before, pictures).mean().item()
        right = sum(check(picture, each.prompt).exact for picture, each in zip(pictures, chosen, strict=True))
        figures[f"{name}exact"] = Rate(right, count).as_json()
    return figures


def _distance(pictures: Tensor, colours: list[str]) -> Tensor:
    """Of every pixel to a colour, one for each picture: -> (B, H, W)."""
    return (pictures - rgb(colours)[:, :, None, None]).square().sum(1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _changed(scene: Scene, seed: int, shape: bool) -> Scene:
    """Other colours, never the same for two things; `shape`: the shape of another thing, too; nothing held out."""
    generator = _generator(seed)
    while True:
        colours = [list(COLOURS)[i] for i in torch.randperm(len(COLOURS), generator=generator).tolist()]
        shapes = [list(THINGS)[int(torch.randint(len(THINGS), (), generator=generator))] for _ in scene.things]
        things = tuple(
            replace(thing, colour=colour, shape=other if shape else thing.shape)
            for thing, colour, other in zip(scene.things, colours, shapes, strict=False)
        )
        changed = replace(scene, things=things)
        if not held_out(changed):
            return changed


def _boxes(cover: Tensor) -> Tensor:
    """The box around what is covered, with MARGIN pixels more on each side: (B, 1, H, W) -> the same, 0 or 1."""
    hidden = torch.zeros_like(cover)
    for each, mask in zip(hidden[:, 0], cover[:, 0] > 0, strict=True):
        rows, columns = mask.nonzero().T
        top, left = max(int(rows.min()) - MARGIN, 0), max(int(columns.min()) - MARGIN, 0)
        each[top : int(rows.max()) + 1 + MARGIN, left : int(columns.max()) + 1 + MARGIN] = 1
    return hidden


def _in_batches(draw: Callable[[slice], Tensor], count: int, label: str | None) -> Tensor:
    starts = tqdm(range(0, count, BATCH), desc=label, leave=False, disable=None if label else True)
    return torch.cat([draw(slice(k, min(k + BATCH, count))).cpu().float() for k in starts])


@torch.no_grad()
def _reconstructed(sd: StableDiffusion, pixels: Tensor) -> Tensor:
    weight = next(sd.vae.parameters())
    return sd.vae.decode(sd.vae.encode(pixels.to(weight)).mean).clamp(-1, 1).cpu().float()
