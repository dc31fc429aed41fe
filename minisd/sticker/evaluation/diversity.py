"""What a model does where its prompt leaves it free: is it as varied as the world that it was taught?"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch

from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.metrics import judge_prompts
from minisd.sticker.training.dataset import STYLED, UNSEEN
from minisd.sticker.world.captions import ThingExpectation, expectation, mention
from minisd.sticker.world.checker.check import Verdict
from minisd.sticker.world.checker.recognise import Found
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Scene
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.splits import PAIRS, held_out

FREE_PROMPTS = ("a shape", "a circle", "a red shape")
_REFERENCE = 2000  # scenes whose places pictures are compared with


def free_attributes(
    sd: StableDiffusion, count: int, seed: int, steps: int | None = None, label: str | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """How far from the world is what prompts leave open, in `count` pictures of each of FREE_PROMPTS.

    {prompt: {attribute: {"distance", "chance"}}}: of colours and shapes, the total variation distance to the taught
    kinds, all equally likely; of x and y, the Kolmogorov-Smirnov distance to scenes of the world. "chance" is what a
    perfect model has on average with as few pictures. What is no colour or shape of ours counts as another kind.
    """
    report = {}
    for prompt in FREE_PROMPTS:
        wanted = expectation(prompt).things[0]
        found = [main_thing(v) for v in judge_prompts(sd, [prompt] * count, seed, steps, label=label).verdicts]
        kinds = [
            (shape, colour)
            for shape in THINGS
            for colour in COLOURS
            if (shape, colour) not in PAIRS and wanted.shape in (None, shape) and wanted.colour in (None, colour)
        ]
        distances = {}
        if wanted.colour is None:
            colours = [None if thing is None else thing.colour for thing in found]
            distances["colours"] = _variation(colours, [colour for _, colour in kinds])
        if wanted.shape is None:
            shapes = [None if thing is None else thing.shape for thing in found]
            distances["shapes"] = _variation(shapes, [shape for shape, _ in kinds])
        real = [scene.things[0] for scene in _taught_like(wanted, UNSEEN + seed)]
        for axis in ("x", "y"):
            drawn = [getattr(thing, axis) for thing in found if thing is not None]
            chance = math.sqrt(math.pi / 2) * math.log(2) * math.sqrt(1 / max(1, len(drawn)) + 1 / len(real))
            distance = kolmogorov_smirnov(drawn, [getattr(thing, axis) for thing in real])
            distances[axis] = {"distance": distance, "chance": chance}
        report[prompt] = distances
    return report


def main_thing(verdict: Verdict) -> Found | None:
    """The largest thing in a picture; None in an empty one."""
    return max(verdict.found, key=lambda thing: thing.area, default=None)


def total_variation(drawn: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """Half the summed differences of the shares of each kind in two samples: 0 where equal, 1 where disjoint."""
    first, second = Counter(drawn), Counter(expected)
    return sum(abs(first[kind] / len(drawn) - second[kind] / len(expected)) for kind in first | second) / 2


def _variation(drawn: Sequence[Hashable], expected: Sequence[Hashable]) -> dict[str, float]:
    """With what is expected by chance: a share p of n draws is off by sqrt(2 p (1 - p) / (pi n)) on average."""
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


def _taught_like(wanted: ThingExpectation, seed: int) -> list[Scene]:
    """Scenes of one thing with the shape and colour asked for, that may be taught without a word about its style."""
    rng = torch.Generator().manual_seed(seed)
    scenes: list[Scene] = []
    while len(scenes) < _REFERENCE:
        scene = sample_scene(rng, two=0, several=0, styled=STYLED)
        thing = scene.things[0]
        unsaid = mention(scene, rng).things[0].style is None
        alike = wanted.shape in (None, thing.shape) and wanted.colour in (None, thing.colour)
        if alike and unsaid and not held_out(scene):
            scenes.append(scene)
    return scenes


def entropy(names: Sequence[str | None]) -> tuple[float, float]:
    """Bits of uncertainty of which name comes, without the Nones, and the standard error of that figure."""
    counts = Counter(name for name in names if name is not None)
    total = max(1, counts.total())
    shares = [n / total for n in counts.values()]
    bits = -sum(p * math.log2(p) for p in shares)
    variance = sum(p * math.log2(p) ** 2 for p in shares) - bits**2
    return max(0.0, bits), math.sqrt(max(0.0, variance) / total)
