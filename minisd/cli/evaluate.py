"""Measure how well a model draws what prompts of Sticker World ask for, judged by the exact checker."""

import argparse
import itertools
import math
import random
from pathlib import Path

from tqdm import tqdm

import weights_loader
from minisd import images, validation
from minisd.cli.parser import Parser, whole
from minisd.training.text_to_image import COLOURS, SHAPES
from minisd.world.checker import check
from minisd.world.scene import RELATIONS
from minisd.writing import check_target, write_json

SKILLS = ("colour", "shape", "relation", "exact")


def add_arguments(parser: Parser) -> None:
    """The options of `minisd eval`."""
    parser.add_argument("--model", default="sticker", help="name, folder or file")
    parser.add_argument("--count", type=whole, default=96, help="prompts of each suite")
    parser.add_argument("--seed", type=whole, default=0, help="of the first picture; also chooses the prompts")
    parser.add_argument("--steps", type=whole, help="denoising steps (default: the model's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rates there")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a sheet of the first pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(args: argparse.Namespace) -> int:
    """Draw, judge, print a rate with its 95 % interval for each skill."""
    count = validation.whole_number(args.count, "count", 1, 100_000)
    seed = validation.seed(args.seed)
    if args.json is not None:
        check_target(args.json, args.overwrite)
    if args.sheet is not None:
        images.check_target(args.sheet, args.overwrite)
    sd = weights_loader.load(args.model)
    rates, sheet = {}, []
    for name, prompts in suites(count, seed).items():
        verdicts = []
        for k, prompt in enumerate(tqdm(prompts, desc=name, leave=False)):
            picture = sd(prompt, seed=seed + k, num_inference_steps=args.steps).images[0]
            verdicts.append(check(images.from_pil(picture)[0], prompt))
            sheet += [picture] if k < 24 else []
        rates[name] = {skill: sum(bool(getattr(v, skill)) for v in verdicts) / count for skill in SKILLS}
        for skill, rate in rates[name].items():
            print(f"{name:7} {skill:9} {100 * rate:5.1f} % +-{196 * math.sqrt(rate * (1 - rate) / count):.1f}")
    if args.json is not None:
        write_json({"prompts a suite": count, "seed": seed, **rates}, args.json, args.overwrite)
    if args.sheet is not None:
        images.save(images.image_grid(sheet, 12, gap=2), args.sheet, overwrite=args.overwrite)
    return 0


def suites(count: int, seed: int) -> dict[str, list[str]]:
    """Prompts for one thing ("a red circle") and for two ("a red circle above a blue square")."""
    chance = random.Random(seed)
    articles = {colour: "an" if colour[0] in "aeiou" else "a" for colour in sorted(COLOURS)}
    things = [f"{a} {colour} {shape}" for colour, a in articles.items() for shape in sorted(SHAPES)]
    pairs = [f"{a} {relation} {b}" for a, b in itertools.permutations(things, 2) for relation in RELATIONS]
    single = [thing for _ in range(math.ceil(count / len(things))) for thing in chance.sample(things, len(things))]
    return {"single": single[:count], "two": [chance.choice(pairs) for _ in range(count)]}
