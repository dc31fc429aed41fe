"""`minisd train full|dreambooth|lora|embedding`: fine-tune a model on a folder of images, and save the result."""

import argparse
from collections.abc import Callable
from dataclasses import fields

import torch

import weights_loader
from minisd._internal import validation
from minisd._internal.atomic_folders import check_folder, make_folder
from minisd.cli.option_names import option_of
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.training.captioned_images import CaptionedImages, read_captioned_images
from minisd.training.class_images import class_images
from minisd.training.fine_tuning import train_embedding, train_lora
from minisd.training.full_fine_tuning import Settings, check_class_captions, train_full
from minisd.training.trainer import TrainingBudget, TrainingRun

WHOLE_MODEL = ("full", "dreambooth")
NO_EMPTY_PROMPTS = {"empty_prompts": 0.0}  # of DreamBooth, as published


def fine_tune(args: argparse.Namespace, budget: TrainingBudget, device: str, report: Callable[[str], None]) -> None:
    """Read the images, train, save. Raises InputError for options that are missing or belong to another stage."""
    settings = _check(args)
    rank = validation.whole_number(args.rank, "--rank", 1, 1024)
    count = validation.whole_number(args.class_images, "--class-images", 1, 100_000)
    sd = weights_loader.load(args.start_from)
    size = sd.vae.config.sample_size
    pictures = read_captioned_images(args.pictures, size, args.prompt)
    check_class_captions(pictures, [] if args.class_prompt is None else [args.class_prompt])
    make_folder(args.folder)
    run = TrainingRun(args.folder / f"{args.stage}.pt", budget, report)
    if args.stage not in WHOLE_MODEL:
        _train_adapter(args, sd, pictures, run, rank)
        return
    check_folder(args.folder / "model", overwrite=True)
    sd.to(device)
    prior = None
    if args.class_pictures is not None:
        prior = read_captioned_images(args.class_pictures, size, args.class_prompt or "")
    elif args.class_prompt is not None:
        prior = class_images(sd, args.class_prompt, count, args.folder, report)
    train_full(sd, pictures, run, settings, prior)
    weights_loader.save(sd, args.folder / "model", dtype=torch.float16, overwrite=True)
    print(f"{args.folder / 'model'}  try: minisd '{pictures.captions[0]}' --model {args.folder / 'model'}")


def _check(args: argparse.Namespace) -> Settings:
    """The settings of a full fine-tuning, from the options. Raises InputError for those that do not fit the stage."""
    if args.pictures is None or args.start_from is None:
        raise InputError(f"{args.stage} needs --pictures FOLDER and --start-from MODEL, the model to adapt.")
    if args.stage == "embedding" and (args.token is None or args.like is None):
        raise InputError("embedding needs --token, the new token, and --like, a known word to start from.")
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    of_class = [name for name in ("class_prompt", "class_pictures") if getattr(args, name) is not None]
    if args.stage not in WHOLE_MODEL and (given or of_class):
        option = option_of([*given, *of_class][0])
        raise InputError(f"{option} is for {' and '.join(WHOLE_MODEL)}, not for {args.stage}; remove it.")
    if args.stage == "dreambooth" and not of_class:
        raise InputError(
            "dreambooth needs --class-prompt, such as 'a photo of a dog', or --class-pictures FOLDER; without images "
            "of the class, train full."
        )
    return Settings(**{**(NO_EMPTY_PROMPTS if args.stage == "dreambooth" else {}), **given})


def _train_adapter(
    args: argparse.Namespace, sd: StableDiffusion, pictures: CaptionedImages, run: TrainingRun, rank: int
) -> None:
    path = args.folder / f"{args.stage}.safetensors"
    if args.stage == "embedding":
        vectors = train_embedding(sd, pictures, args.token, args.like, run)
        weights_loader.save_embedding(args.token, vectors, path, overwrite=True)
    else:
        changes = train_lora(sd, pictures, run, rank)
        weights_loader.save_lora(changes.parts, sd.unet, path, overwrite=True)
    print(f"{path}  try: minisd '{pictures.captions[0]}' --model {args.start_from} --{args.stage} {path}")
