"""Measure how well a model draws what prompts of Sticker World ask for, by the exact checker; and its autoencoder."""

import argparse
import itertools
import math
import random
from pathlib import Path

import torch
from tqdm import tqdm

import weights_loader
from minisd import images, validation
from minisd.cli.parser import Parser, whole
from minisd.models import VAE
from minisd.training.text_to_image import COLOURS, SHAPES, taught_scenes
from minisd.world.checker import check
from minisd.world.render import render
from minisd.world.scene import RELATIONS
from minisd.writing import check_target, write_json

UNSEEN = 1_000_000  # seeds of scenes from here on are not those of training
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
            low, high = interval(rate, count)
            print(f"{name:7} {skill:9} {100 * rate:5.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    decibels = reconstruction_psnr(sd.vae, count, seed)
    quality = {"mean psnr": sum(decibels) / count, "worst psnr": min(decibels)}
    print("autoencoder  {mean psnr:.1f} dB mean, {worst psnr:.1f} worst".format_map(quality))
    if args.json is not None:
        content = {"prompts a suite": count, "seed": seed, **rates, "autoencoder": quality}
        write_json(content, args.json, args.overwrite)
    if args.sheet is not None:
        images.save(images.image_grid(sheet, 12, gap=2), args.sheet, overwrite=args.overwrite)
    return 0


def interval(rate: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate seen in `count` trials (Wilson 1927): of use near 0 and 1, too."""
    z = 1.96**2 / count
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z * z / 4) / (1 + z)
    return max(0.0, middle - reach), min(1.0, middle + reach)


@torch.no_grad()
def reconstruction_psnr(vae: VAE, count: int, seed: int) -> list[float]:
    """Peak signal-to-noise ratios in dB of `count` scenes after encoding and decoding them."""
    scenes = taught_scenes(count, UNSEEN + seed)
    errors = []
    for k in range(0, count, 32):
        pixels = render(scenes[k : k + 32], vae.config.sample_size)
        again = vae.decode(vae.encode(pixels).mean).clamp(-1, 1)
        errors += ((again - pixels) / 2).square().mean((1, 2, 3)).tolist()
    return [-10 * math.log10(error) for error in errors]


def suites(count: int, seed: int) -> dict[str, list[str]]:
    """Prompts for one thing ("a red circle") and for two ("a red circle above a blue square")."""
    chance = random.Random(seed)
    articles = {colour: "an" if colour[0] in "aeiou" else "a" for colour in sorted(COLOURS)}
    things = [f"{a} {colour} {shape}" for colour, a in articles.items() for shape in sorted(SHAPES)]
    pairs = [f"{a} {relation} {b}" for a, b in itertools.permutations(things, 2) for relation in RELATIONS]
    single = [thing for _ in range(math.ceil(count / len(things))) for thing in chance.sample(things, len(things))]
    return {"single": single[:count], "two": [chance.choice(pairs) for _ in range(count)]}
