"""`minisd train full|dreambooth|lora|embedding`: fine-tune a model on a folder of images, and save the result."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import torch
import torch.distributed as dist

import weights_loader
from minisd._internal import validation
from minisd._internal.atomic_folders import check_folder, make_folder
from minisd.cli.option_names import option_of
from minisd.errors import InputError
from minisd.training import full_fine_tuning, lora
from minisd.training.captioned_images import read_captioned_images
from minisd.training.class_images import class_images
from minisd.training.fine_tuning import Settings, check_class_captions
from minisd.training.textual_inversion import train_embedding
from minisd.training.trainer import TrainingBudget, TrainingRun

DEFAULTS = {
    "full": full_fine_tuning.SETTINGS,
    "dreambooth": full_fine_tuning.DREAMBOOTH,
    "lora": lora.SETTINGS,
}


def fine_tune(
    args: argparse.Namespace, budget: TrainingBudget, device: str, process: int, report: Callable[[str], None]
) -> None:
    """Read the images, train, save in the first process. Raises InputError for options that do not fit the stage."""
    settings = _check(args)
    rank = validation.whole_number(args.rank, "--rank", 1, 1024)
    count = validation.whole_number(args.class_images, "--class-images", 1, 100_000)
    sd = weights_loader.load(args.start_from)
    size = sd.vae.config.sample_size
    pictures = read_captioned_images(args.pictures, size, args.prompt)
    check_class_captions(pictures, [] if args.class_prompt is None else [args.class_prompt])
    make_folder(args.folder)
    is_whole = args.stage in ("full", "dreambooth")
    target = args.folder / ("model" if is_whole else f"{args.stage}.safetensors")
    if is_whole:
        check_folder(target, overwrite=True)
    run = TrainingRun(args.folder / f"{args.stage}.pt", budget, report)
    prior = None
    if args.stage != "embedding":
        sd.to(device)
    if args.class_pictures is not None:
        prior = read_captioned_images(args.class_pictures, size, args.class_prompt or "")
    elif args.class_prompt is not None:
        with _first_process_first(process):
            prior = class_images(sd, args.class_prompt, count, args.folder, report)
    if args.stage == "embedding":
        vectors = train_embedding(sd, pictures, args.token, args.like, run)
    elif args.stage == "lora":
        changes = lora.train_lora(sd, pictures, run, rank, settings, prior)
    else:
        full_fine_tuning.train_full(sd, pictures, run, settings, prior)
    if process > 0:
        return
    if args.stage == "embedding":
        weights_loader.save_embedding(args.token, vectors, target, overwrite=True)
    elif args.stage == "lora":
        weights_loader.save_lora(changes.parts, sd.unet, target, overwrite=True)
    else:
        weights_loader.save(sd, target, dtype=torch.float16, overwrite=True)
    use = f"--model {target}" if is_whole else f"--model {args.start_from} --{args.stage} {target}"
    print(f"{target}  try: minisd '{pictures.captions[0]}' {use}")


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
    of_class = [name for name in ("class_prompt", "class_pictures") if getattr(args, name) is not None]
    if args.stage not in DEFAULTS and (given or of_class):
        raise InputError(f"{option_of([*given, *of_class][0])} is for {', '.join(DEFAULTS)}; remove it.")
    if args.stage == "dreambooth" and not of_class:
        raise InputError(
            "dreambooth needs --class-prompt, such as 'a photo of a dog', or --class-pictures FOLDER; without images "
            "of the class, train full."
        )
    return replace(DEFAULTS.get(args.stage, Settings()), **given)
