"""Measure diversity: whether attributes that a prompt leaves open vary as much as in the training data."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch

from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import judge_prompts
from minisd.sticker.training.dataset import FIRST_TEST_SEED, STYLED_PROBABILITY
from minisd.sticker.world.captions import ObjectExpectation, parse_caption, select_content
from minisd.sticker.world.checker.check import Verdict
from minisd.sticker.world.checker.recognise import Detection
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Object
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.splits import HELD_OUT_PAIRS, held_out

OPEN_PROMPTS = ("a shape", "a circle", "a red shape")
_REFERENCE_COUNT = 2000  # scenes whose positions are the reference


def measure_diversity(
    sd: StableDiffusion, count: int, seed: int, steps: int | None = None, label: str | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Distances between the training data and the open attributes in `count` images of each of OPEN_PROMPTS.

    {prompt: {attribute: {"distance", "chance"}}}. For colours and shapes: the total variation distance to a uniform
    distribution over the training combinations; unknown ones count as another value. For x and y: the
    Kolmogorov-Smirnov distance to scenes of the world. "chance" is the mean distance of a perfect model for the same
    number of images.
    """
    report = {}
    for prompt in OPEN_PROMPTS:
        expected = parse_caption(prompt).objects[0]
        verdicts = judge_prompts(sd, [prompt] * count, seed, steps, label=label).verdicts
        found = [largest_object(verdict) for verdict in verdicts]
        kinds = [
            (shape, colour)
            for shape in SHAPES
            for colour in COLOURS
            if (shape, colour) not in HELD_OUT_PAIRS and _fits(expected, shape, colour)
        ]
        distances = {}
        if expected.colour is None:
            colours = [None if obj is None else obj.colour for obj in found]
            distances["colours"] = _variation(colours, [colour for _, colour in kinds])
        if expected.shape is None:
            shapes = [None if obj is None else obj.shape for obj in found]
            distances["shapes"] = _variation(shapes, [shape for shape, _ in kinds])
        real = _reference_objects(expected, FIRST_TEST_SEED + seed)
        for axis in ("x", "y"):
            drawn = [getattr(obj, axis) for obj in found if obj is not None]
            chance = math.sqrt(math.pi / 2) * math.log(2) * math.sqrt(1 / max(1, len(drawn)) + 1 / len(real))
            distance = kolmogorov_smirnov(drawn, [getattr(obj, axis) for obj in real])
            distances[axis] = {"distance": distance, "chance": chance}
        report[prompt] = distances
    return report


def largest_object(verdict: Verdict) -> Detection | None:
    """The largest object in an image; None in an empty one."""
    return max(verdict.found, key=lambda obj: obj.area, default=None)


def total_variation(drawn: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """Half the summed differences of the shares of each value in two samples: 0 if equal, 1 if disjoint."""
    first, second = Counter(drawn), Counter(expected)
    return sum(abs(first[kind] / len(drawn) - second[kind] / len(expected)) for kind in first | second) / 2


def _variation(drawn: Sequence[Hashable], expected: Sequence[Hashable]) -> dict[str, float]:
    """The distance, and its mean by chance: a share p of n draws deviates by sqrt(2 p (1 - p) / (pi n)) on average."""
    shares = [n / len(expected) for n in Counter(expected).values()]
    chance = sum(math.sqrt(2 * p * (1 - p) / (math.pi * len(drawn))) for p in shares) / 2
    return {"distance": total_variation(drawn, expected), "chance": chance}


def kolmogorov_smirnov(first: Sequence[float], second: Sequence[float]) -> float:
    """The largest difference of the distribution functions of two samples; 1 if one is empty."""
    if not first or not second:
        return 1.0
    a, b = (torch.tensor(sample, dtype=torch.float64).sort().values for sample in (first, second))
    both = torch.cat([a, b])
    shares = [torch.searchsorted(sample, both, right=True) / len(sample) for sample in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def _fits(expected: ObjectExpectation, shape: str, colour: str) -> bool:
    return expected.shape in (None, shape) and expected.colour in (None, colour)


def _reference_objects(expected: ObjectExpectation, seed: int) -> list[Object]:
    """Objects from scenes of one object that could be in the training data with a caption without a style."""
    rng = torch.Generator().manual_seed(seed)
    objects: list[Object] = []
    while len(objects) < _REFERENCE_COUNT:
        scene = sample_scene(rng, two=0, several=0, styled=STYLED_PROBABILITY)
        obj = scene.objects[0]
        without_style = select_content(scene, rng).objects[0].style is None
        if without_style and _fits(expected, obj.shape, obj.colour) and not held_out(scene):
            objects.append(obj)
    return objects


def entropy(names: Sequence[str | None]) -> tuple[float, float]:
    """The entropy of the names in bits, without the Nones, and its standard error."""
    counts = Counter(name for name in names if name is not None)
    total = max(1, counts.total())
    shares = [n / total for n in counts.values()]
    bits = -sum(p * math.log2(p) for p in shares)
    variance = sum(p * math.log2(p) ** 2 for p in shares) - bits**2
    return max(0.0, bits), math.sqrt(max(0.0, variance) / total)
