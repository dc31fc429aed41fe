"""Measure the adapters of the embedded model, which are trained on `minisd.sticker.training.examples`."""

from dataclasses import replace

import torch

from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import Rate, judge_prompts
from minisd.sticker.evaluation.prompt_suites import suite_examples, write_prompt
from minisd.sticker.training.examples import MOON, TOKEN_COLOUR, TOKEN_SHAPE
from minisd.sticker.world.captions import Expectation, ObjectExpectation, parse_caption


def measure_embedding(sd: StableDiffusion, count: int, seed: int, token: str, label: str | None = None) -> Rate:
    """The rate of exact images for prompts with two objects, one of them a pink star, which is called `token`."""
    meant = []
    for k, (_, scene) in enumerate(suite_examples("two", count, seed, sd.defaults.words)):
        star = replace(scene.objects[0], shape=TOKEN_SHAPE, colour=TOKEN_COLOUR)
        scene = replace(scene, objects=(star, scene.objects[1]))
        meant.append(write_prompt(scene, "shape colour relation", torch.Generator().manual_seed(seed + k)))
    prompts = [text.replace(f"{TOKEN_COLOUR} {TOKEN_SHAPE}", token) for text in meant]
    return judge_prompts(sd, prompts, seed, label=label, meant=meant).exact


def measure_night_lora(sd: StableDiffusion, count: int, seed: int, label: str | None = None) -> Rate:
    """The rate of images, for prompts with one object, that show it at night under the moon of the LoRA's images."""
    prompts = [each.prompt for each in suite_examples("single", count, seed, sd.defaults.words)]
    moon = ObjectExpectation(MOON.shape, MOON.colour)
    meant = [Expectation((*parse_caption(prompt).objects, moon), background="black") for prompt in prompts]
    return judge_prompts(sd, prompts, seed, label=label, meant=meant).exact
