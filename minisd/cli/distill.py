"""`minisd train distill`: students of a model that need fewer steps, or one call a step in place of two."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import weights_loader
from minisd._internal import validation
from minisd._internal.atomic_folders import check_folder, make_folder
from minisd.cli.fine_tune_options import METHODS
from minisd.cli.parser import real
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM
from minisd.sticker.training.dataset import scenes_fingerprint, training_scenes, write_training_caption
from minisd.sticker.training.diffusion import encode_scenes, prompt_ids
from minisd.sticker.world.captions import select_content
from minisd.training import distillation, guidance_distillation
from minisd.training.captioned_images import read_captioned_images
from minisd.training.denoising import check_model, encode_captions_once, encode_images, training_side
from minisd.training.distillation import RECIPE as PROGRESSIVE_RECIPE
from minisd.training.distillation import Batch, halvings
from minisd.training.fine_tuning import is_small
from minisd.training.guidance_distillation import RECIPE as GUIDED_RECIPE
from minisd.training.run_files import fingerprint
from minisd.training.trainer import TrainingBudget, TrainingRun
from weights_loader.sources import resolve

BATCH = 16
SMALL_WIDTH = 32  # of the sinusoids of the guidance scale, in a UNet as small as the embedded one

Draw = Callable[[torch.Generator], Batch]


def distill(
    args: argparse.Namespace, budget: TrainingBudget, device: str, process: int, report: Callable[[str], None]
) -> None:
    """Train the students one after another, save each. Raises InputError for options that are missing or do not fit."""
    if args.start_from is None:
        raise InputError("distill needs --start-from MODEL, the teacher.")
    pool = validation.whole_number(args.pool, "--pool", 64, 10**7)
    batch = BATCH if args.batch is None else validation.whole_number(args.batch, "--batch", 1, 2**20)
    recipe = GUIDED_RECIPE if args.method == "guided" else PROGRESSIVE_RECIPE
    if args.ema_decay is not None:
        recipe = replace(recipe, ema_decay=validation.real_number(args.ema_decay, "--ema-decay", 0, 0.99999))
    checkpointing = bool(args.gradient_checkpointing)
    method, scales = args.method or METHODS[0], _read_scales(args.scales or "1,8")
    students = _students(args) if method == "progressive" else []
    if method == "guided" and (args.first is not None or args.last is not None):
        raise InputError("--from and --to are for the method progressive; remove them.")
    names = [f"steps-{steps}" for steps in students] or ["guided"]
    if os.path.realpath(resolve(args.start_from)) in {os.path.realpath(args.folder / name) for name in names}:
        raise InputError(f"{args.start_from} is the teacher, and would be replaced; name another folder.")
    sd = weights_loader.load(args.start_from, device=device, dtype=torch.float32)
    reads_scale = sd.unet.config.guidance_width is not None
    check_model(sd, may_read_scale=method == "progressive")
    if sd.is_xl:
        raise InputError("SDXL cannot be distilled; use a text-to-image model of SD 1.x or 2.x.")
    if args.pictures is None and not sd.defaults.words:
        raise InputError("distill needs --pictures FOLDER, images with captions: only the embedded model has its own.")
    if args.guidance is not None and (method == "guided" or reads_scale):
        raise InputError("--guidance is for a student that learns one scale; give --scales, the range that it reads.")
    if args.scales is not None and method == "progressive" and not reads_scale:
        raise InputError("--scales is for a student that reads the scale; give --guidance, the one that it learns.")
    scheduler = replace(DDIM.in_place_of(sd.scheduler), timestep_spacing="trailing", steps_offset=0)
    sd.scheduler = scheduler
    for steps in students:
        distillation.teacher_grid(scheduler, steps)
    make_folder(args.folder)
    for name in names:
        check_folder(args.folder / name, overwrite=True)
        TrainingRun(args.folder / f"{name}.pt", budget).check()
    scale = sd.defaults.guidance_scale if args.guidance is None else validation.guidance(args.guidance)
    draw, about = _data(args, sd, pool, batch)
    empty = _states(sd, [""])

    for name, steps in zip(names, students or [0], strict=True):
        run = TrainingRun(args.folder / f"{name}.pt", budget, partial(_report, report, name), about=about)
        if students:
            guidance = scales if reads_scale else scale
            sd.unet = distillation.train_student(
                sd.unet, scheduler, steps, draw, run, guidance, empty, recipe, checkpointing
            )
            drawn_with = sd.defaults.guidance_scale if reads_scale else 1.0
            sd.defaults = replace(sd.defaults, num_inference_steps=steps, guidance_scale=drawn_with)
            scale = 1.0  # what the first student has learned of guidance, its students learn from it
        else:
            width = SMALL_WIDTH if is_small(sd) else guidance_distillation.WIDTH
            sd.unet = guidance_distillation.train_guided(
                sd.unet, scheduler.schedule, draw, empty, run, scales, recipe, width, checkpointing
            )
        if process == 0:
            weights_loader.save(sd, args.folder / name, dtype=torch.float16, overwrite=True)
            print(f"{args.folder / name}  try: minisd 'a prompt' --model {args.folder / name}")


def _students(args: argparse.Namespace) -> list[int]:
    first = 32 if args.first is None else validation.whole_number(args.first, "--from", 2, 500)
    return halvings(first, 4 if args.last is None else validation.whole_number(args.last, "--to", 1, 500))


def _report(report: Callable[[str], None], name: str, line: str) -> None:
    report(f"{name:8} {line}")


def _read_scales(text: str) -> tuple[float, float]:
    """Two numbers from "1,8". Raises InputError."""
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"--scales is {text!r}, expected the smallest and the largest scale, as 1,8.")
    low, high = (validation.real_number(real(part), "--scales", -1000, 1000) for part in parts)
    if not low < high:
        raise InputError(f"--scales is {text}, expected the smaller number first.")
    return low, high


def _data(args: argparse.Namespace, sd: StableDiffusion, pool: int, batch: int) -> tuple[Draw, dict[str, object]]:
    """What gives a batch, and the facts about it for the run.

    The images are those of --pictures, or scenes of Sticker World with new captions each time.
    """
    if args.pictures is not None:
        pictures = read_captioned_images(args.pictures, training_side(sd), args.prompt or "")
        latents, states = encode_images(sd, pictures.pixels), _states(sd, pictures.captions)
        facts = {"pictures and captions": fingerprint(pictures.pixels, *pictures.captions), "batch": batch}
        return lambda generator: _rows(generator, batch, latents, states, sd.device), facts
    scenes = training_scenes(pool, seed=1)
    encoded = encode_scenes(sd.vae, scenes)

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(pool, (batch,), generator=generator)
        captions = [write_training_caption(select_content(scenes[row], generator), generator) for row in rows.tolist()]
        ids = prompt_ids(sd.tokenizer, captions, torch.zeros(batch), progress=1.0)
        with torch.no_grad():
            return encoded[rows.to(encoded.device)], sd.text_encoder(ids.to(encoded.device))

    return draw, {"pool": pool, "scenes": scenes_fingerprint(), "batch": batch}


def _rows(generator: torch.Generator, batch: int, latents: Tensor, states: Tensor, device: torch.device) -> Batch:
    rows = torch.randint(len(latents), (batch,), generator=generator)
    return latents[rows].to(device), states[rows].to(device)


def _states(sd: StableDiffusion, captions: list[str]) -> Tensor:
    return encode_captions_once(sd, captions, (training_side(sd),) * 2).text
