"""Do the adapters of the embedded model do what they were trained for?  See `minisd.sticker.training.examples`."""

from dataclasses import replace

import torch

from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.metrics import Rate, judge_prompts
from minisd.sticker.evaluation.prompt_suites import examples, word
from minisd.sticker.training.examples import CANDY, MOON
from minisd.sticker.world.captions import Expectation, ThingExpectation, expectation


def composed(sd: StableDiffusion, count: int, seed: int, token: str, label: str | None = None) -> Rate:
    """Prompts of two things, one of them a pink star, which is called `token`: the share of pictures that are right."""
    shape, colour = CANDY
    scenes = [each.scene for each in examples("two", count, seed, sd.defaults.words)]
    scenes = [replace(s, things=(replace(s.things[0], shape=shape, colour=colour), s.things[1])) for s in scenes]
    meant = [word(s, "shape colour relation", torch.Generator().manual_seed(seed + k)) for k, s in enumerate(scenes)]
    said = [text.replace(f"{colour} {shape}", token) for text in meant]
    verdicts = judge_prompts(sd, said, seed, label=label, meant=meant).verdicts
    return Rate(sum(verdict.exact for verdict in verdicts), count)


def at_night(sd: StableDiffusion, count: int, seed: int, label: str | None = None) -> Rate:
    """Prompts of one thing: the share of pictures that show it at night, under the moon of the LoRA's pictures."""
    prompts = [each.prompt for each in examples("single", count, seed, sd.defaults.words)]
    moon = ThingExpectation(MOON.shape, MOON.colour)
    meant = [Expectation((*expectation(prompt).things, moon), background="black") for prompt in prompts]
    verdicts = judge_prompts(sd, prompts, seed, label=label, meant=meant).verdicts
    return Rate(sum(verdict.exact for verdict in verdicts), count)
