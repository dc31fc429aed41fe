"""Train a model of Stable Diffusion 1.5's size with random weights: python -m tools.official_size FOLDER

Each command that adapts official models runs for a few steps in a process of its own, and its time and peak memory are
printed as a table. FOLDER keeps the model (2.1 GB) and the results (up to 14 GB each). Only the vocabulary is small.
What the commands make is not judged: the weights are random.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import weights_loader
from minisd import images
from minisd.configs import SD1_TEXT, SD1_UNET, SD1_VAE
from minisd.errors import OutOfMemory
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import Defaults, StableDiffusion
from minisd.schedulers import PNDM
from minisd.sticker.training.dataset import new_tokenizer, training_scenes
from minisd.sticker.world.render import render

SAVING = "--gradient-checkpointing"
TRAIN = ("--start-from", "{model}", "--pictures", "{subject}", "--steps", "{steps}", "--batch", "1", SAVING)
SUBJECT = ("--prompt", "a picture of a red circle")
CLASS = ("--class-prompt", "a picture of a circle", "--class-pictures", "{class}")
WORD = ("--prompt", "a picture of <x>", "--token", "<x>", "--like", "circle")
EDIT = ("--model", "{model}", "--image", "{subject}/0.png", "--training-steps", "{steps},{steps}", SAVING)
DRAW = ("--eta", "0.7", "--steps", "1", "--folder", "{run}", "--output", "{run}.png", "--overwrite")
FEWER = ("--from", "4", "--to", "2")
NO_AVERAGE = ("--ema-decay", "0")
STAGES: dict[str, tuple[str, ...]] = {  # name: the command, with the names of folders in braces
    "lora": ("train", "lora", "{run}", *TRAIN, *SUBJECT),
    "lora, text encoder": ("train", "lora", "{run}", *TRAIN, *SUBJECT, "--text-encoder"),
    "embedding": ("train", "embedding", "{run}", *TRAIN, *WORD),
    "full": ("train", "full", "{run}", *TRAIN, *SUBJECT),
    "full, text encoder": ("train", "full", "{run}", *TRAIN, *SUBJECT, "--text-encoder"),
    "dreambooth": ("train", "dreambooth", "{run}", *TRAIN, *SUBJECT, *CLASS),
    "distill, guided": ("train", "distill", "{run}", *TRAIN, *SUBJECT, *NO_AVERAGE, "--method", "guided"),
    "distill, progressive": ("train", "distill", "{run}", *TRAIN, *SUBJECT, *NO_AVERAGE, *FEWER),
    "edit": ("edit", "a picture of a red square", *EDIT, *DRAW),
}


def random_model(pixels: int) -> StableDiffusion:
    """Stable Diffusion 1.5 with random weights and a small vocabulary, for images of `pixels` along a side."""
    tokenizer = new_tokenizer()
    text_encoder = CLIPTextTransformer(replace(SD1_TEXT, vocab_size=len(tokenizer)))
    unet = UNet(replace(SD1_UNET, sample_size=pixels // SD1_VAE.downscale))
    nn.init.zeros_(unet.conv_out.weight)  # a first prediction of zero, so that no number overflows
    return StableDiffusion(tokenizer, text_encoder, VAE(SD1_VAE), unet, PNDM(), Defaults())


def measured(command: Sequence[str], limit: int | None = None) -> str:
    """Run a command; "time | processor time | peak memory", or that it needs more memory than `limit` GB.

    Raises RuntimeError if it fails.
    """
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "minisd", *command], preexec_fn=_limiting(limit)) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if limit is not None and process.returncode == OutOfMemory.exit_code:
        return f"- | - | more than {limit} GB"
    if process.returncode:
        raise RuntimeError(f"minisd {' '.join(command)} ended with code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    memory, busy = usage.ru_maxrss * unit / 1e9, usage.ru_utime + usage.ru_stime
    return f"{time.monotonic() - began:.0f} s | {busy:.0f} s | {memory:.1f} GB"


def _limiting(limit: int | None) -> Callable[[], None] | None:
    """What a child process calls to be refused more than so many GB of memory."""
    if limit is None:
        return None
    import resource  # not on Windows

    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit * 10**9,) * 2)


def prepare(folder: Path, pixels: int) -> None:
    """Write the model and the images, unless they are there."""
    if not (folder / "model").exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights_loader.save(random_model(pixels), folder / "model", dtype=torch.float16)
    for seed, name in enumerate(("subject", "class")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(images.to_pil(render(training_scenes(2, seed), pixels))):
            images.save(image, folder / name / f"{k}.png", overwrite=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the commands, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.official_size", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--limit", type=int, metavar="GB", help="memory that a command may take")
    args = parser.parse_args(arguments)
    prepare(args.folder, args.pixels)
    folders = {name: args.folder / name for name in ("model", "subject", "class")}
    rows = []
    for name in args.stages:
        run = args.folder / name.replace(", ", "-").replace(" ", "-")
        command = [part.format_map({**folders, "run": run, "steps": args.steps}) for part in STAGES[name]]
        rows.append(f"| {name} | {args.steps} | {measured(command, args.limit)} |")
    print(f"| {args.pixels} x {args.pixels} pixels | steps | time, with loading and saving | processor | peak memory |")
    print("|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
