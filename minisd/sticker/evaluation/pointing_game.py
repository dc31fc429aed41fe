"""Do a model's word heat maps point at the thing that the word names?  Judged by what the checker finds drawn."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from minisd import images
from minisd.interpret.attention_maps import enlarged, record_attention
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.metrics import BATCH, Rate
from minisd.sticker.world.captions import ThingExpectation, expectation
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.checker.recognise import Found
from minisd.sticker.world.render import masks
from minisd.sticker.world.scene import Scene, Thing


class Pointing(NamedTuple):
    """Of the things that were drawn as asked, those in which their noun's heat map is hottest; `chance` is the mean
    share of the picture that they cover, which is what a random point would get.
    """

    rate: Rate
    chance: float


def pointing(
    sd: StableDiffusion, prompts: Sequence[str], seed: int, steps: int | None = None, label: str | None = None
) -> Pointing:
    """Draw each prompt, the k-th from seed + k, and play the pointing game (Zhang et al. 2016) with its nouns.

    A noun counts where it names one thing of the prompt alone, and exactly one thing of its shape and colour is in the
    picture. The heat map is the mean over all steps and layers.
    """
    hits, covered = 0, []
    for k in tqdm(range(0, len(prompts), BATCH), desc=label, leave=False, disable=None if label else True):
        batch = list(prompts[k : k + BATCH])
        with record_attention(sd) as maps:
            drawn = sd(batch, seed=seed + k, num_inference_steps=steps).images
        for row, (prompt, image) in enumerate(zip(batch, drawn, strict=True)):
            found = check(images.from_pil(image)[0], prompt).found
            for noun, wanted in _nouns(prompt).items():
                there = [each for each in found if each.shape == noun and wanted.colour in (None, each.colour)]
                if len(there) == 1:
                    inside = mask_of(there[0], found, image.height)
                    heat = enlarged(maps.heat_map(noun, prompt, picture=row), (image.height, image.width))
                    hits += bool(inside.flatten()[heat.argmax()])
                    covered.append(float(inside.float().mean()))
    return Pointing(Rate(hits, len(covered)), sum(covered) / max(1, len(covered)))


def mask_of(thing: Found, found: Sequence[Found], size: int) -> Tensor:
    """The pixels (size, size) at least half of which show a thing with a shape, drawn again from where it was found.

    found: all that is in the picture, some of which may hide part of it.
    """
    before = [other for other in found if other.shape is not None and other.hidden < thing.hidden]
    return masks([Scene(tuple(map(_again, [thing, *before])))], size)[0, 0] >= 0.5


def _again(found: Found) -> Thing:
    radius = math.sqrt(found.area / math.pi)
    return Thing(str(found.shape), "red", found.size, found.x, found.y, radius, found.style)


def _nouns(prompt: str) -> dict[str, ThingExpectation]:
    """The nouns of a prompt that name one thing alone."""
    things = expectation(prompt).things
    shapes = [thing.shape for thing in things]
    return {thing.shape: thing for thing in things if thing.shape is not None and shapes.count(thing.shape) == 1}
