"""Draw a picture from a prompt."""

import argparse
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd.cli.console import say
from minisd.cli.inputs import file_stem, numbered, read_prompt, split_option
from minisd.cli.output import enlarged, save, save_film
from minisd.cli.parser import Parser, real, whole
from minisd.errors import InputError, OutputError
from minisd.interpret.clip_ranking import best, likeness
from minisd.interpret.film import Film
from minisd.models import CLIP
from minisd.pipeline import DenoisingStep, StableDiffusion
from minisd.schedulers import (
    DDIM,
    DDPM,
    LCM,
    LMS,
    PNDM,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    Scheduler,
    UniPC,
)
from minisd.tokenizer import Tokenizer
from weights_loader.sources import EMBEDDED, EMBEDDED_VARIANTS

DTYPES = ("float32", "bfloat16", "float16")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SAMPLERS: dict[str, tuple[type[Scheduler], dict[str, object]]] = {
    "ddim": (DDIM, {}),
    "ddpm": (DDPM, {}),
    "dpm++": (DPMSolverMultistep, {}),
    "dpm++sde": (DPMSolverMultistep, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (Euler, {}),
    "euler-a": (EulerAncestral, {}),
    "heun": (Heun, {}),
    "lcm": (LCM, {}),
    "lms": (LMS, {}),
    "pndm": (PNDM, {}),
    "unipc": (UniPC, {}),
}


def add_arguments(parser: Parser) -> None:
    """The options of `minisd "a prompt"`."""
    parser.add_argument("prompt", help="what to draw; @FILE reads it from a file, - from standard input")
    parser.add_argument("-o", "--output", type=Path, help="PNG, JPEG or WebP file (default: named by the prompt)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--model", default="sticker", help="name, hub id, folder or file")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]", help="merge a LoRA; may be repeated"
    )
    parser.add_argument(
        "--embedding", action="append", default=[], metavar="FILE[:TOKEN]", help="add a learned word; may be repeated"
    )
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what to keep away from")
    parser.add_argument("--steps", type=whole, help="denoising steps (default: the model's)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="how to step (default: the model's)")
    parser.add_argument("--karras", action="store_true", help="the sampler's noise levels after Karras et al. 2022")
    parser.add_argument("--guidance", type=real, help="guidance scale, 1 for none (default: the model's)")
    parser.add_argument("--seed", type=whole, help="of the first picture (default: drawn, and reported)")
    parser.add_argument("--count", type=whole, default=1, help="pictures to draw")
    parser.add_argument(
        "--best-of", type=whole, default=1, metavar="N", help="draw N for each, keep what CLIP likes best"
    )
    parser.add_argument(
        "--clip", metavar="MODEL", help="the CLIP of --best-of: name, hub id, folder (default: the model's)"
    )
    parser.add_argument("--height", type=whole, help="pixels (default: the model's)")
    parser.add_argument("--width", type=whole, help="pixels (default: the model's)")
    parser.add_argument("--eta", type=real, default=0.0, help="noise that DDIM adds at each step, 0..1")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture to begin with")
    parser.add_argument("--strength", type=real, help="how much of it to change, 0..1 (default: 0.8; 1 with --mask)")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="white where --image is to be painted anew")
    parser.add_argument("--depth", type=Path, metavar="FILE", help="a depth map, white is near (depth models)")
    parser.add_argument("--upscale", type=Path, metavar="FILE", help="a small picture to enlarge (upscalers)")
    parser.add_argument("--noise-level", type=whole, metavar="N", help="noise on an upscaler's small picture")
    parser.add_argument("--refiner", metavar="MODEL", help="goes on where --model stops, such as sdxl-refiner")
    parser.add_argument("--handover", type=real, default=0.8, help="the share of the noise levels before --refiner")
    parser.add_argument("--film", type=Path, help="also write the steps: a strip (.png) or an animation (.gif)")
    parser.add_argument("--scale", type=whole, default=1, help="enlarge the picture, in whole pixels")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what to compute in")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="for a single file: where its vocabulary is")
    parser.add_argument("--prediction-type", choices=PREDICTION_TYPES, help="of a single file that does not tell")
    parser.add_argument("--variant", help="which weight files of a folder or repository, such as fp16")
    parser.add_argument("--offline", action="store_true", default=None, help="never connect; use the hub's cache")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--strict-prompt", action="store_true", help="a prompt that is too long is an error")


@dataclass(frozen=True)
class Wanted:
    """What was asked for, read and checked before anything is loaded."""

    prompt: str
    model: str
    count: int
    tries: int  # pictures drawn for each that is kept
    scale: int
    targets: list[Path] | None
    image: Image.Image | None
    mask: Image.Image | None
    depth: Image.Image | None
    embeddings: list[tuple[Path, str | None]]
    loras: list[tuple[Path, float]]


class Models(NamedTuple):
    """What draws, what goes on with it, and what chooses."""

    sd: StableDiffusion
    refiner: StableDiffusion | None
    clip: tuple[CLIP, Tokenizer] | None


def run(args: argparse.Namespace) -> int:
    """Check everything, draw, save; says where, how long and which seed."""
    wanted = _check(args)
    began = time.perf_counter()
    models = _load(args, wanted)
    sd, refiner, clip = models
    loaded = time.perf_counter()
    lost = sd.tokenizer.encode(wanted.prompt).dropped[0] if args.strict_prompt else ""
    if lost:
        raise InputError(f"the prompt is too long, {lost!r} would be lost; shorten it.")
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    total = sd.defaults.num_inference_steps if args.steps is None else args.steps

    film = Film(sd, every=max(1, total // 8))
    steps = _steps(args, wanted, models, seed, total)
    steps = film.watch(steps) if args.film else steps
    calls = None if args.image or refiner else len(sd.scheduler.grid(total))  # with a picture the strength decides
    for step in tqdm(steps, total=calls, disable=args.quiet or not sys.stderr.isatty()):
        latents = step.latents
    pixels = (refiner or sd).decode(latents)
    kept = list(range(wanted.count))
    if clip is not None:
        kept = best(likeness(*clip, pixels, [wanted.prompt] * len(pixels)), wanted.tries)
    pictures = [enlarged(picture, wanted.scale) for picture in images.to_pil(pixels[kept])]
    seconds = time.perf_counter() - loaded

    guidance = sd.defaults.guidance_scale if args.guidance is None else args.guidance
    for k, picture in enumerate(pictures):
        settings = {
            "prompt": wanted.prompt, "negative_prompt": args.negative, "seed": seed + kept[k], "steps": total,
            "guidance_scale": guidance, "model": wanted.model, "sampler": type(sd.scheduler).__name__,
            "software": "minisd", **({"loras": args.lora} if args.lora else {}),
            **({"refiner": args.refiner, "handover": args.handover} if refiner else {}),
            **({"embeddings": args.embedding} if args.embedding else {}),
            **({"best_of": wanted.tries} if wanted.tries > 1 else {}),
        }  # fmt: skip
        target = wanted.targets[k] if wanted.targets else images.free_name(Path(), file_stem(wanted.prompt))
        path = save(picture, target, args.overwrite, settings)
        how = f"seed {seed + kept[k]}, {total} steps, guidance {guidance:g}"
        say(f"{path}  {picture.width} x {picture.height}, {how}")
    if args.film:
        save_film(film, args.film, args.overwrite)
    say(f"{seconds:.1f} s, after {loaded - began:.1f} s for loading {wanted.model}")
    return 0


def _check(args: argparse.Namespace) -> Wanted:
    """Read what is given, and refuse what cannot be drawn or saved."""
    prompt = read_prompt(args.prompt)
    count = validation.whole_number(args.count, "count", 1, 10_000)
    tries = validation.whole_number(args.best_of, "best-of", 1, 1000)
    if args.film and tries > 1:
        raise InputError("--film would show all that --best-of draws; leave one of them out.")
    scale = validation.whole_number(args.scale, "scale", 1, 64)
    targets = [numbered(args.output, k, count) for k in range(count)] if args.output else None
    for target in [*(targets or []), *([args.film] if args.film else [])]:
        images.check_target(target, args.overwrite)
    if args.film and args.film.suffix.lower() not in (".png", ".gif"):
        raise OutputError(f"{args.film} has the suffix {args.film.suffix!r}, expected .png (a strip) or .gif.")
    if args.image is not None and args.upscale is not None:
        raise InputError("--image and --upscale were both given; an upscaler begins with the picture to enlarge.")
    image, mask, depth = (
        None if path is None else images.open_image(path)
        for path in (args.image or args.upscale, args.mask, args.depth)
    )
    model = _for_the_task(args)
    embeddings = [split_option(text) for text in args.embedding]
    loras = [(path, 1.0 if weight is None else real(weight)) for path, weight in map(split_option, args.lora)]
    return Wanted(prompt, model, count, tries, scale, targets, image, mask, depth, embeddings, loras)


def _load(args: argparse.Namespace, wanted: Wanted) -> Models:
    """The model with its adapters and its sampler, the refiner, and the CLIP that chooses."""
    load = partial(
        weights_loader.load,
        device=args.device,
        dtype=getattr(torch, args.dtype),
        variant=args.variant,
        offline=args.offline,
        progress=not args.quiet,
    )
    sd = load(wanted.model, prediction_type=args.prediction_type, tokenizer=args.tokenizer)
    refiner = None if args.refiner is None else load(args.refiner)
    clip = None
    if wanted.tries > 1:
        of_the_model = EMBEDDED if wanted.model in EMBEDDED_VARIANTS else wanted.model
        clip = weights_loader.load_clip(args.clip or of_the_model, device=args.device)
    for path, token in wanted.embeddings:
        words = weights_loader.load_embedding(sd, path, token)
        say(f"{path}  adds {' '.join(words)}")
    for path, weight in wanted.loras:
        weights_loader.load_lora(sd, path, weight)
    if args.sampler or args.karras:
        kind, changes = SAMPLERS[args.sampler] if args.sampler else (type(sd.scheduler), {})
        karras = {"use_karras_sigmas": True} if args.karras else {}
        sd.scheduler = kind.in_place_of(sd.scheduler, **changes, **karras)
    return Models(sd, refiner, clip)


def _steps(args: argparse.Namespace, wanted: Wanted, models: Models, seed: int, total: int) -> Iterator[DenoisingStep]:
    """The loop, with the refiner's part of it."""
    sd, refiner, _ = models
    drawn = wanted.count * wanted.tries
    common = {"num_inference_steps": total, "guidance_scale": args.guidance, "num_images_per_prompt": drawn}
    steps = sd.denoise(
        wanted.prompt,
        args.negative,
        height=args.height,
        width=args.width,
        seed=seed,
        eta=args.eta,
        image=wanted.image,
        strength=args.strength,
        mask_image=wanted.mask,
        depth_map=wanted.depth,
        noise_level=args.noise_level,
        denoising_end=None if refiner is None else args.handover,
        **common,
    )
    if refiner is None:
        return steps
    generators = [torch.Generator().manual_seed(seed + k) for k in range(drawn)]
    finish = partial(refiner.denoise, wanted.prompt, args.negative, generator=generators, **common)
    return _handed_over(steps, partial(finish, denoising_start=args.handover))


def _for_the_task(args: argparse.Namespace) -> str:
    """The model to load: of the embedded one, the variant that was made for what is given."""
    if args.model != EMBEDDED:
        return str(args.model)
    given = {"depth": args.depth, "upscaling": args.upscale, "inpainting": args.mask}
    return next((f"{EMBEDDED}-{task}" for task, path in given.items() if path is not None), EMBEDDED)


def _handed_over(
    steps: Iterator[DenoisingStep], finish: Callable[..., Iterator[DenoisingStep]]
) -> Iterator[DenoisingStep]:
    """The steps of one model, then those of another that goes on with its latents."""
    for step in steps:
        yield step
    for more in finish(latents=step.latents):
        yield more._replace(i=step.i + 1 + more.i)
