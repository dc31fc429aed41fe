"""`minisd edit`: change what an image shows by a prompt, and keep the rest of it (Imagic)."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import ImageOps

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd.cli.inputs import file_stem, read_image, read_prompt
from minisd.cli.output import say, until_interrupted
from minisd.cli.parser import real, whole
from minisd.editing.imagic import default_settings, draw_edit, train_edit
from minisd.errors import InputError
from minisd.schedulers import validate_steps
from minisd.training.denoising import training_side

WAIT = 5.0  # seconds between two lines of progress


def run(args: argparse.Namespace) -> int:
    """Train the two stages, or continue them, draw the image for each eta, save them in one row."""
    return until_interrupted(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    prompt = read_prompt(args.prompt)
    etas = [validation.real_number(real(text), "--eta", -10, 10) for text in args.eta.split(",")]
    if args.image is None:
        raise InputError("edit needs --image FILE, the image to change.")
    target = args.output or images.free_name(args.image.parent, f"{args.image.stem}-edited", ".png")
    images.check_target(target, args.overwrite)
    picture = read_image(args.image)
    seed = validation.seed(args.seed)
    training = None if args.training_steps is None else _read_steps(args.training_steps)
    device = weights_loader.check_device(args.device or weights_loader.best_device())
    if args.threads is not None:
        torch.set_num_threads(validation.whole_number(args.threads, "--threads", 1, 1024))
    sd = weights_loader.load(args.model, device=device, dtype=torch.float32)
    if args.steps is not None:
        validate_steps(args.steps, sd.scheduler.schedule.num_train_timesteps)
    side = training_side(sd)
    pixels = images.from_pil(ImageOps.fit(picture, (side, side)))
    folder = args.folder or args.image.with_name(f"{args.image.stem}-{file_stem(prompt)}")
    settings = replace(default_settings(sd), gradient_checkpointing=args.gradient_checkpointing)
    if training is not None:
        settings = replace(settings, state_steps=training[0], unet_steps=training[1])
    edit = train_edit(sd, pixels, prompt, folder, settings, _reporter())
    drawn = draw_edit(sd, edit, etas, seed, num_inference_steps=args.steps).images
    shown = [images.captioned(each, f"eta {eta:g}") for each, eta in zip(drawn, etas, strict=True)]
    whole = drawn[0] if len(drawn) == 1 else images.image_grid(shown, len(shown), gap=4)
    say(f"{images.save(whole, target, overwrite=args.overwrite)}  eta {', '.join(f'{eta:g}' for eta in etas)}")
    say(f"{folder}  keeps the training: the same command with another --eta only draws")
    return 0


def _read_steps(text: str) -> tuple[int, int]:
    """Two numbers of steps from "500,1000". Raises InputError."""
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"--training-steps is {text!r}, expected those of both stages, as 500,1000.")
    first, second = (validation.whole_number(whole(part), "--training-steps", 1, 10**6) for part in parts)
    return first, second


def _reporter() -> Callable[[str], None]:
    """Print the lines of progress, but not all of a fast training."""
    last = 0.0

    def report(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > WAIT or line.startswith("100"):
            last = time.monotonic()
            say(line)

    return report
