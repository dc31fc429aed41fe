"""`minisd "a prompt"`: draw images and save them."""

import argparse
import math
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

import weights_loader
from minisd import images, schedulers
from minisd._internal import validation
from minisd._internal.messages import shown
from minisd.cli.inputs import file_stem, numbered, read_image, read_prompt, split_option
from minisd.cli.options import SAMPLERS
from minisd.cli.output import save_film, save_image, say
from minisd.cli.parser import real
from minisd.cli.views import loop_noise, read_grid, views_for
from minisd.errors import InputError, OutputError
from minisd.interpret.clip_ranking import best_of, clip_scores
from minisd.interpret.film import Film
from minisd.models import CLIP
from minisd.pipeline import DenoisingStep, StableDiffusion, View
from minisd.pipeline.preview import fitting_decoder
from minisd.tokenizer import Tokenizer
from weights_loader.sources import EMBEDDED, EMBEDDED_MODELS

LEAST_SIDE = 256  # pixels of an image's longer side on the screen, unless --scale is given


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, read and checked before a model is loaded."""

    prompt: str
    model: str
    device: torch.device
    count: int
    candidates: int  # images drawn for each image that is saved
    frames: int  # of a loop; 1: an image
    grid: tuple[int, int] | None  # columns and rows of windows
    scale: int | None
    targets: list[Path] | None  # None: names from the prompt
    image: Image.Image | None
    mask: Image.Image | None
    depth: Image.Image | None
    embeddings: list[tuple[Path, str | None]]
    loras: list[tuple[Path, float]]


class Models(NamedTuple):
    """The pipeline, the refiner for its last steps, and the CLIP that ranks the images."""

    sd: StableDiffusion
    refiner: StableDiffusion | None
    clip: tuple[CLIP, Tokenizer] | None


def run(args: argparse.Namespace) -> int:
    """Check all inputs, draw, save; print the files, the time, the device and the seeds."""
    inputs = _read_inputs(args)
    began = time.perf_counter()
    models = _load_models(args, inputs)
    sd, refiner, clip = models
    loaded = time.perf_counter()
    texts = [view.prompt for view in views_for(args, inputs.prompt, inputs.grid, sd) or [View(inputs.prompt)]]
    dropped = "".join(sd.tokenizer.encode(texts).dropped) if args.strict_prompt else ""
    if dropped:
        raise InputError(f"the prompt is too long, {shown(dropped)} would be dropped; shorten it.")
    first = secrets.randbelow(2**32) if args.seed is None else validation.seed(args.seed)
    drawn = inputs.count * inputs.candidates * inputs.frames
    seeds = [(first + k) % (validation.LARGEST_SEED + 1) for k in range(drawn)]  # as make_generators numbers them
    total = sd.defaults.num_inference_steps if args.steps is None else args.steps

    film = Film(sd, every=max(1, total // 8))
    steps = _denoise(args, inputs, models, seeds, total)
    steps = film.watch(steps) if args.film else steps
    calls = None if args.image or refiner else len(sd.scheduler.grid(total))  # --strength changes the number of calls
    for step in tqdm(steps, total=calls, disable=args.quiet or not sys.stderr.isatty()):
        latents = step.latents
    last = refiner or sd
    pixels = last.decode(latents) if args.preview_decoder is None else last.preview(latents)
    kept = list(range(inputs.count * inputs.frames))
    if clip is not None:
        kept = best_of(clip_scores(*clip, pixels, [inputs.prompt] * len(pixels)), inputs.candidates)
    scale = math.ceil(LEAST_SIDE / max(pixels.shape[-2:])) if inputs.scale is None else inputs.scale
    finished = [_enlarged(image, scale) for image in images.to_pil(pixels[kept])]
    seconds = time.perf_counter() - loaded

    guidance = sd.defaults.guidance_scale if args.guidance is None else args.guidance
    for k, image in enumerate(finished[: inputs.count]):
        settings = {
            "prompt": inputs.prompt, "negative_prompt": args.negative, "seed": seeds[kept[k]], "steps": total,
            "guidance_scale": guidance, "model": inputs.model, "sampler": type(sd.scheduler).__name__,
            "software": "minisd", **({"reuse_features": args.reuse_features} if args.reuse_features > 1 else {}),
            **({} if args.preview_decoder is None else {"preview_decoder": args.preview_decoder or "the model's"}),
            **({"loras": args.lora} if args.lora else {}),
            **({"refiner": args.refiner, "handover": args.handover} if refiner else {}),
            **({"embeddings": args.embedding} if args.embedding else {}),
            **({"best_of": inputs.candidates} if inputs.candidates > 1 else {}),
            **({"scale": scale} if scale > 1 else {}), **({"grid": args.grid} if args.grid else {}),
            **({"turned": args.turned, "turn": args.turn or "half"} if args.turned is not None else {}),
        }  # fmt: skip
        target = inputs.targets[k] if inputs.targets else _free_name(inputs.prompt, inputs.frames)
        path = save_image(image, target, args.overwrite, settings, finished[1:] if inputs.frames > 1 else [])
        frames = f", {inputs.frames} frames" if inputs.frames > 1 else ""
        size = f"{image.width} x {image.height}{frames}"
        say(f"{path}  {size}, seed {seeds[kept[k]]}, {total} steps, guidance {guidance:g}")
    if args.film:
        save_film(film, args.film, args.overwrite)
    say(f"{seconds:.1f} s on {inputs.device}, after {loaded - began:.1f} s to load {inputs.model}")
    return 0


def _read_inputs(args: argparse.Namespace) -> Inputs:
    """Read prompt and images, and check everything that needs no model."""
    prompt = read_prompt(args.prompt)
    count = validation.whole_number(args.count, "--count", 1, 10_000)
    candidates = validation.whole_number(args.best_of, "--best-of", 1, 1000)
    frames = 1 if args.loop is None else validation.whole_number(args.loop, "--loop", 2, 1000)
    grid = None if args.grid is None else read_grid(args.grid, prompt)
    _check_combinations(args, count, candidates)
    scale = None if args.scale is None else validation.whole_number(args.scale, "--scale", 1, 64)
    if args.film and args.film.suffix.lower() not in (".png", ".gif"):
        raise OutputError(f"{args.film} has the suffix {args.film.suffix!r}, expected .png (a strip) or .gif.")
    if args.output and frames > 1 and args.output.suffix.lower() != ".gif":
        raise OutputError(f"{args.output} has the suffix {args.output.suffix!r}, expected .gif for --loop.")
    targets = [numbered(args.output, k, count) for k in range(count)] if args.output else None
    named = targets or [_free_name(prompt, frames)]  # the latter to see whether the folder is writable
    for target in [*named, *([args.film] if args.film else [])]:
        images.check_target(target, args.overwrite)
    if args.film and any(os.path.realpath(args.film) == os.path.realpath(target) for target in named):
        raise OutputError(f"{args.film} is the name of --film and of an image; give two names.")
    if args.image is not None and args.upscale is not None:
        raise InputError("--image and --upscale were both given; remove one of them.")
    image, mask, depth = (
        None if path is None else read_image(path) for path in (args.image or args.upscale, args.mask, args.depth)
    )
    device = weights_loader.check_device(args.device or weights_loader.best_device())
    _note_what_surprises(args, prompt, device)
    return Inputs(
        prompt, _model_for_task(args), device,
        count, candidates, frames, grid, scale, targets, image, mask, depth,
        [split_option(text) for text in args.embedding],
        [(path, 1.0 if weight is None else real(weight)) for path, weight in map(split_option, args.lora)],
    )  # fmt: skip


def _check_combinations(args: argparse.Namespace, count: int, candidates: int) -> None:
    """Refuse options that contradict each other."""
    if args.film and candidates > 1:
        raise InputError("--film would show every candidate of --best-of; remove one of them.")
    if args.turn is not None and args.turned is None:
        raise InputError("--turn says how --turned turns the image; give --turned, or remove --turn.")
    if args.grid is not None and args.turned is not None:
        raise InputError("--grid and --turned were both given; remove one of them.")
    if args.grid is not None and (args.height is not None or args.width is not None):
        raise InputError("--grid decides the size of the image; remove --height and --width.")
    if args.loop is not None:
        if count > 1 or candidates > 1:
            raise InputError("--loop makes one file of all its frames; remove --count and --best-of.")
        if args.image is not None or args.upscale is not None:
            raise InputError("--loop begins with noise, not with an image; remove --image or --upscale.")
    if candidates > 1 and (args.grid is not None or args.turned is not None):
        raise InputError("--best-of ranks images by one prompt; remove --best-of, or --grid and --turned.")


def _free_name(prompt: str, frames: int) -> Path:
    """A name from the prompt that no file has."""
    return images.free_name(Path(), file_stem(prompt), ".gif" if frames > 1 else ".png")


def _note_what_surprises(args: argparse.Namespace, prompt: str, device: torch.device) -> None:
    """Say what is allowed, and seldom meant."""
    if not prompt.strip():
        warnings.warn("the prompt is empty, so the image shows anything that the model draws without one", stacklevel=2)
    if args.guidance is not None and args.guidance < 0:
        warnings.warn("guidance_scale is negative, which guides away from the prompt", stacklevel=2)
    if args.dtype == "float16" and device.type == "cpu":
        warnings.warn("float16 is slow on a CPU; float32 is faster", stacklevel=2)


def _dtype(name: str, inputs: Inputs) -> torch.dtype:
    """The dtype of that name; "auto" is the fastest of the device, and float32 for the small embedded model."""
    if name != "auto":
        return getattr(torch, name)
    small = inputs.model in EMBEDDED_MODELS
    dtype = torch.float32 if small else weights_loader.best_dtype(inputs.device)
    say(f"computes in {str(dtype).removeprefix('torch.')}")
    return dtype


def _load_models(args: argparse.Namespace, inputs: Inputs) -> Models:
    """Load the pipeline with its adapters and its sampler, the refiner, and the CLIP for --best-of."""
    load = partial(
        weights_loader.load,
        device=inputs.device,
        dtype=_dtype(args.dtype, inputs),
        variant=args.variant,
        offline=args.offline,
        progress=not args.quiet,
    )
    sd = load(inputs.model, prediction_type=args.prediction_type, tokenizer=args.tokenizer)
    refiner = None if args.refiner is None else load(args.refiner)
    clip = None
    if inputs.candidates > 1:
        clip_of_model = EMBEDDED if inputs.model in EMBEDDED_MODELS else inputs.model
        clip = weights_loader.load_clip(args.clip or clip_of_model, device=inputs.device)
    for path, token in inputs.embeddings:
        tokens = weights_loader.load_embedding(sd, path, token)
        say(f"{path}  adds {' '.join(tokens)}")
    for path, weight in inputs.loras:
        weights_loader.load_lora(sd, path, weight)
    if args.sampler or args.karras:
        kind = getattr(schedulers, SAMPLERS[args.sampler]) if args.sampler else type(sd.scheduler)
        changes = {"algorithm_type": "sde-dpmsolver++"} if args.sampler == "dpm++sde" else {}
        karras = {"use_karras_sigmas": True} if args.karras else {}
        sd.scheduler = kind.in_place_of(sd.scheduler, **changes, **karras)
    if args.preview_decoder is not None:
        _prepare_previews(args, inputs, refiner or sd)
    return Models(sd, refiner, clip)


def _prepare_previews(args: argparse.Namespace, inputs: Inputs, sd: StableDiffusion) -> None:
    """Load the preview decoder that was asked for, and check that it fits the model."""
    if args.preview_decoder:
        sd.preview_decoder = weights_loader.load_preview_decoder(
            args.preview_decoder, device=inputs.device, dtype=sd.dtype, offline=args.offline, progress=not args.quiet
        )
    fitting_decoder(sd.preview_decoder, sd.vae)


def _denoise(
    args: argparse.Namespace, inputs: Inputs, models: Models, seeds: list[int], total: int
) -> Iterator[DenoisingStep]:
    """The denoising steps of the pipeline, then those of the refiner."""
    sd, refiner, _ = models
    views = views_for(args, inputs.prompt, inputs.grid, sd)
    common = {"num_inference_steps": total, "guidance_scale": args.guidance, "num_images_per_prompt": len(seeds)}
    common |= {"negative_prompt": args.negative, "reuse_features": args.reuse_features}
    common |= {"prompt": inputs.prompt} if views is None else {"views": views}
    begin: dict[str, Any] = {"height": args.height, "width": args.width, "seed": seeds[0]}
    if inputs.frames > 1:  # a sampler that adds noise adds the same to each frame
        begin = {"latents": loop_noise(args, inputs.frames, sd, views, seeds[0])}
        begin["generator"] = [torch.Generator().manual_seed(seeds[1]) for _ in seeds]
    steps = sd.denoise(
        **begin,
        eta=args.eta,
        image=inputs.image,
        strength=args.strength,
        mask_image=inputs.mask,
        depth_map=inputs.depth,
        noise_level=args.noise_level,
        denoising_end=None if refiner is None else args.handover,
        **common,
    )
    if refiner is None:
        return steps
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    refine = partial(refiner.denoise, generator=generators, **common)
    return _then_refine(steps, partial(refine, denoising_start=args.handover))


def _then_refine(
    steps: Iterator[DenoisingStep], refine: Callable[..., Iterator[DenoisingStep]]
) -> Iterator[DenoisingStep]:
    """All steps of one model, then those of the refiner, which continues from the last latents."""
    for step in steps:
        yield step
    for more in refine(latents=step.latents):
        yield more._replace(i=step.i + 1 + more.i)


def _model_for_task(args: argparse.Namespace) -> str:
    """The model to load: instead of the embedded model, its variant for --depth, --upscale or --mask."""
    if args.model != EMBEDDED:
        return str(args.model)
    paths = {"depth": args.depth, "upscaling": args.upscale, "inpainting": args.mask}
    return next((f"{EMBEDDED}-{task}" for task, path in paths.items() if path is not None), EMBEDDED)


def _enlarged(image: Image.Image, scale: int) -> Image.Image:
    """The image with each pixel as scale x scale equal pixels."""
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
