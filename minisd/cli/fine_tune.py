"""`minisd train full|dreambooth|lora|embedding`: fine-tune a model on a folder of images, and save the result."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd._internal.atomic_files import check_target
from minisd._internal.atomic_folders import check_folder, make_folder
from minisd.cli.fine_tune_options import WHOLE_MODEL
from minisd.cli.option_names import option_of
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.training import full_fine_tuning, lora, textual_inversion
from minisd.training.captioned_images import read_captioned_images
from minisd.training.class_images import class_images
from minisd.training.denoising import training_side
from minisd.training.fine_tuning import Settings, check, check_class_captions
from minisd.training.trainer import TrainingBudget, TrainingRun
from weights_loader.sources import resolve

SAMPLES = 4
DEFAULTS = {
    "full": full_fine_tuning.SETTINGS,
    "dreambooth": full_fine_tuning.DREAMBOOTH,
    "lora": lora.SETTINGS,
    "embedding": Settings(batch=textual_inversion.BATCH),
}


def fine_tune(
    args: argparse.Namespace, budget: TrainingBudget, device: str, process: int, report: Callable[[str], None]
) -> None:
    """Read the images, train, save in the first process. Raises InputError for options that do not fit the stage."""
    settings = _check(args)
    rank = 4 if args.rank is None else validation.whole_number(args.rank, "--rank", 1, 1024)
    count = 100 if args.class_images is None else validation.whole_number(args.class_images, "--class-images", 1, 10**5)
    is_whole = args.stage in WHOLE_MODEL
    target = args.folder / (args.stage if is_whole else f"{args.stage}.safetensors")
    if is_whole and os.path.realpath(resolve(args.start_from)) == os.path.realpath(target):
        raise InputError(f"{target} is the model to start from, and would be replaced; name another folder.")
    sd = weights_loader.load(args.start_from, device=device, dtype=torch.float32)
    side = training_side(sd)
    pictures = read_captioned_images(args.pictures, side, args.prompt or "")
    make_folder(args.folder)
    check_folder(target, overwrite=True) if is_whole else check_target(target, overwrite=True)
    run = TrainingRun(args.folder / f"{args.stage}.pt", budget, report)
    prior = None
    if args.stage != "embedding":
        check(sd, pictures, run if is_whole else run.of(rank=rank), settings, None)  # before images are drawn
    if args.class_pictures is not None:
        prior = read_captioned_images(args.class_pictures, side, args.class_prompt or "")
    elif args.class_prompt is not None:
        check_class_captions(pictures, [args.class_prompt])
        with _first_process_first(process):
            prior = class_images(sd, args.class_prompt, count, args.folder, report)
    sample = None if args.sample is None else partial(_draw_samples, args.sample, args.folder / "samples.png")
    if args.stage == "embedding":
        vectors = textual_inversion.train_embedding(
            sd, pictures, args.token, args.like, run,
            batch=settings.batch, checkpointing=settings.gradient_checkpointing,
        )  # fmt: skip
    elif args.stage == "lora":
        changes = lora.train_lora(sd, pictures, run, rank, settings, prior, sample)
    else:
        full_fine_tuning.train_full(sd, pictures, run, settings, prior, sample)
    if process > 0:
        return
    if args.stage == "embedding":
        weights_loader.save_embedding(args.token, vectors, target, overwrite=True)
    elif args.stage == "lora":
        pairs = zip(sd.text_parts, changes.of_encoders, strict=False)
        encoders = [(part.encoder, each.parts) for part, each in pairs]
        weights_loader.save_lora(changes.parts, sd.unet, target, overwrite=True, encoders=encoders)
    else:
        weights_loader.save(sd, target, dtype=torch.float16, overwrite=True)
    use = f"--model {target}" if is_whole else f"--model {args.start_from} --{args.stage} {target}"
    print(f"{target}  try: minisd '{pictures.captions[0]}' {use}")


def _draw_samples(prompt: str, path: Path, sd: StableDiffusion) -> None:
    drawn = sd(prompt, seed=0, num_images_per_prompt=SAMPLES).images
    images.save(images.image_grid(drawn, SAMPLES, gap=2), path, overwrite=True)


@contextmanager
def _first_process_first(process: int) -> Iterator[None]:
    """Let the other processes of torchrun enter when the first one has left, so that they find what it made."""
    if process > 0:
        dist.barrier()
    yield
    if process == 0 and dist.is_initialized():
        dist.barrier()


def _check(args: argparse.Namespace) -> Settings:
    """The settings, from the options. Raises InputError for options that do not fit the stage."""
    if args.pictures is None or args.start_from is None:
        raise InputError(f"{args.stage} needs --pictures FOLDER and --start-from MODEL, the model to adapt.")
    if args.stage == "embedding" and (args.token is None or args.like is None):
        raise InputError("embedding needs --token, the new token, and --like, a known word to start from.")
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    if args.class_prompt is not None and not args.class_prompt.strip():
        raise InputError("--class-prompt is empty, expected the name of the class, such as 'a photo of a dog'.")
    if args.class_images is not None and args.class_pictures is not None:
        raise InputError("--class-images and --class-pictures were both given; remove one of them.")
    if args.class_prompt is None and args.class_pictures is None:
        if args.stage == "dreambooth":
            raise InputError(
                "dreambooth needs --class-prompt, such as 'a photo of a dog', or --class-pictures FOLDER; without "
                "images of the class, train full."
            )
        for name in ("class_images", "prior_weight"):
            if getattr(args, name) is not None:
                raise InputError(f"{option_of(name)} is for images of a class; give --class-prompt, or remove it.")
    return replace(DEFAULTS[args.stage], **given)
