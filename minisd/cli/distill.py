"""`minisd train distill`: students of a model that need fewer steps, or one call a step in place of two."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import weights_loader
from minisd._internal import validation
from minisd._internal.atomic_folders import check_folder, make_folder
from minisd.cli.parser import real
from minisd.errors import InputError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM
from minisd.sticker.training.dataset import training_scenes, write_training_caption
from minisd.sticker.training.diffusion import encode_scenes, prompt_ids
from minisd.sticker.world.captions import select_content
from minisd.training import distillation, guidance_distillation
from minisd.training.captioned_images import read_captioned_images
from minisd.training.denoising import check_model, encode_captions, encode_images
from minisd.training.distillation import Batch, halvings
from minisd.training.fine_tuning import is_small
from minisd.training.trainer import TrainingBudget, TrainingRun

BATCH = 16
SMALL_WIDTH = 32  # of the sinusoids of the guidance scale, in a UNet as small as the embedded one

Draw = Callable[[torch.Generator], Batch]


def distill(args: argparse.Namespace, budget: TrainingBudget, process: int, report: Callable[[str], None]) -> None:
    """Train the students one after another, save each. Raises InputError for options that are missing or do not fit."""
    if args.start_from is None:
        raise InputError("distill needs --start-from MODEL, the teacher.")
    pool = validation.whole_number(args.pool, "--pool", 64, 10**7)
    students = halvings(args.first, args.last) if args.method == "progressive" else []
    sd = weights_loader.load(args.start_from)
    check_model(sd)
    if sd.is_xl:
        raise InputError("SDXL cannot be distilled; use a text-to-image model of SD 1.x or 2.x.")
    if args.pictures is None and not sd.defaults.words:
        raise InputError("distill needs --pictures FOLDER, images with captions: only the embedded model has its own.")
    sd.scheduler = replace(DDIM.in_place_of(sd.scheduler), timestep_spacing="trailing", steps_offset=0)
    scale = sd.defaults.guidance_scale if args.guidance is None else validation.guidance(args.guidance)
    scales = _read_scales(args.scales)
    make_folder(args.folder)
    names = [f"steps-{steps}" for steps in students] or ["guided"]
    for name in names:
        check_folder(args.folder / name, overwrite=True)
    draw, empty = _data(args, sd, pool), _states(sd, [""])

    for name, steps in zip(names, students or [0], strict=True):
        run = TrainingRun(args.folder / f"{name}.pt", budget, partial(_report, report, name))
        if students:
            sd.unet = _half(sd, steps, draw, run, scales if sd.unet.config.guidance_width else scale, empty)
            guidance = sd.defaults.guidance_scale if sd.unet.config.guidance_width else 1.0
            sd.defaults = replace(sd.defaults, num_inference_steps=steps, guidance_scale=guidance)
            scale = 1.0  # what the first student has learned of guidance, its students learn from it
        else:
            width = SMALL_WIDTH if is_small(sd) else guidance_distillation.WIDTH
            unet, schedule = sd.unet, sd.scheduler.schedule
            sd.unet = guidance_distillation.train_guided(unet, schedule, draw, empty, run, scales, width=width)
        if process == 0:
            weights_loader.save(sd, args.folder / name, dtype=torch.float16, overwrite=True)
            print(f"{args.folder / name}  try: minisd 'a prompt' --model {args.folder / name}")


def _report(report: Callable[[str], None], name: str, line: str) -> None:
    report(f"{name:8} {line}")


def _half(
    sd: StableDiffusion, steps: int, draw: Draw, run: TrainingRun, scale: float | tuple[float, float], empty: Tensor
) -> UNet:
    assert isinstance(sd.scheduler, DDIM)
    return distillation.train_student(sd.unet, sd.scheduler, steps, draw, run, scale, empty)


def _read_scales(text: str) -> tuple[float, float]:
    """Two numbers from "1,8". Raises InputError."""
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"--scales is {text!r}, expected the smallest and the largest scale, as 1,8.")
    low, high = (validation.guidance(real(part)) for part in parts)
    return low, high


def _data(args: argparse.Namespace, sd: StableDiffusion, pool: int) -> Draw:
    """What gives a batch: of the images of --pictures, or of scenes of Sticker World with new captions each time."""
    if args.pictures is not None:
        pictures = read_captioned_images(args.pictures, sd.vae.config.sample_size, args.prompt)
        latents, states = encode_images(sd, pictures.pixels), _states(sd, pictures.captions)
        return lambda generator: _rows(generator, latents, states)
    scenes = training_scenes(pool, seed=1)
    encoded = encode_scenes(sd.vae, scenes)

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(pool, (BATCH,), generator=generator)
        captions = [write_training_caption(select_content(scenes[row], generator), generator) for row in rows.tolist()]
        with torch.no_grad():
            return encoded[rows], sd.text_encoder(prompt_ids(sd.tokenizer, captions, torch.zeros(BATCH), progress=1.0))

    return draw


def _rows(generator: torch.Generator, latents: Tensor, states: Tensor) -> Batch:
    rows = torch.randint(len(latents), (BATCH,), generator=generator)
    return latents[rows], states[rows]


@torch.no_grad()
def _states(sd: StableDiffusion, captions: list[str]) -> Tensor:
    return encode_captions(sd, captions, (sd.vae.config.sample_size,) * 2).text
