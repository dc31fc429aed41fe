"""The pointing game: whether a word's heat map has its maximum inside the object that the word names."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from minisd import images
from minisd.interpret.attention_maps import record_attention, resize_map
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import BATCH, Rate
from minisd.sticker.world.captions import ObjectExpectation, parse_caption
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.checker.recognise import Detection
from minisd.sticker.world.render import masks
from minisd.sticker.world.scene import Object, Scene


class PointingScore(NamedTuple):
    """The rate of hits, and the mean share of the image that the objects cover, the rate of a random point."""

    rate: Rate
    chance: float


def play_pointing_game(
    sd: StableDiffusion, prompts: Sequence[str], seed: int, steps: int | None = None, label: str | None = None
) -> PointingScore:
    """Generate an image for each prompt, the k-th from seed + k, and play the pointing game (Zhang et al. 2016).

    A noun counts if it names exactly one object of the prompt, and the image shows exactly one object of its shape and
    colour. The heat map is the mean over all steps and layers.
    """
    hits, covered = 0, []
    for k in tqdm(range(0, len(prompts), BATCH), desc=label, leave=False, disable=None if label else True):
        batch = list(prompts[k : k + BATCH])
        with record_attention(sd) as maps:
            drawn = sd(batch, seed=seed + k, num_inference_steps=steps).images
        for row, (prompt, image) in enumerate(zip(batch, drawn, strict=True)):
            found = check(images.from_pil(image)[0], prompt).found
            for noun, expected in unique_nouns(prompt).items():
                named = [each for each in found if each.shape == noun and expected.colour in (None, each.colour)]
                if len(named) == 1:
                    inside = mask_of(named[0], found, image.height)
                    heat = resize_map(maps.heat_map(noun, prompt, picture=row), (image.height, image.width))
                    hits += bool(inside.flatten()[heat.argmax()])
                    covered.append(float(inside.float().mean()))
    return PointingScore(Rate(hits, len(covered)), sum(covered) / max(1, len(covered)))


def mask_of(obj: Detection, found: Sequence[Detection], size: int) -> Tensor:
    """The mask (size, size) of a detected object with a known shape, rendered again: pixels that it covers by half.

    found: all objects in the image, some of which may hide a part of it.
    """
    in_front = [other for other in found if other.shape is not None and other.hidden < obj.hidden]
    return masks([Scene(tuple(map(_as_object, [obj, *in_front])))], size)[0, 0] >= 0.5


def _as_object(found: Detection) -> Object:
    radius = math.sqrt(found.area / math.pi)
    return Object(str(found.shape), "red", found.size, found.x, found.y, radius, found.style)


def unique_nouns(prompt: str) -> dict[str, ObjectExpectation]:
    """The nouns of a prompt that name exactly one object."""
    objects = parse_caption(prompt).objects
    shapes = [obj.shape for obj in objects]
    return {obj.shape: obj for obj in objects if obj.shape is not None and shapes.count(obj.shape) == 1}
