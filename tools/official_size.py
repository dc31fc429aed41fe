"""Train a model of Stable Diffusion 1.5's size with random weights: python -m tools.official_size FOLDER

Each stage of `minisd train` that adapts official models runs for a few steps in a process of its own, and its time and
peak memory are printed as a table. FOLDER keeps the model (2.1 GB) and the results (up to 2.2 GB each). Only the
vocabulary is small. What the stages make is not judged: the weights are random.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import weights_loader
from minisd import images
from minisd.configs import SD1_TEXT, SD1_UNET, SD1_VAE
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import Defaults, StableDiffusion
from minisd.schedulers import PNDM
from minisd.sticker.training.dataset import new_tokenizer, training_scenes
from minisd.sticker.world.render import render

SUBJECT = ("--prompt", "a picture of a red circle")
CLASS = ("--class-prompt", "a picture of a circle", "--class-pictures")
SAVING = ("--gradient-checkpointing", "--batch", "1")
STAGES: dict[str, tuple[str, ...]] = {  # name: the stage and its options; {} is the folder of the images of the class
    "lora": ("lora", *SUBJECT, *SAVING),
    "lora, text encoder": ("lora", *SUBJECT, *SAVING, "--text-encoder"),
    "embedding": ("embedding", "--prompt", "a picture of <x>", "--token", "<x>", "--like", "circle"),
    "full": ("full", *SUBJECT, *SAVING),
    "dreambooth": ("dreambooth", *SUBJECT, *SAVING, *CLASS, "{}"),
}


def random_model(pixels: int) -> StableDiffusion:
    """Stable Diffusion 1.5 with random weights and a small vocabulary, for images of `pixels` along a side."""
    tokenizer = new_tokenizer()
    text_encoder = CLIPTextTransformer(replace(SD1_TEXT, vocab_size=len(tokenizer)))
    unet = UNet(replace(SD1_UNET, sample_size=pixels // SD1_VAE.downscale))
    nn.init.zeros_(unet.conv_out.weight)  # a first prediction of zero, so that no number overflows
    return StableDiffusion(tokenizer, text_encoder, VAE(SD1_VAE), unet, PNDM(), Defaults())


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; the seconds it took, and its peak memory in GB. Raises RuntimeError if it fails."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "minisd", *command]) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"minisd {' '.join(command)} ended with code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - began, usage.ru_maxrss * unit / 1e9


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
    """Run the stages, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.official_size", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=512)
    args = parser.parse_args(arguments)
    prepare(args.folder, args.pixels)
    rows = []
    for name in args.stages:
        stage, *options = (part.format(args.folder / "class") for part in STAGES[name])
        where = ["--start-from", str(args.folder / "model"), "--pictures", str(args.folder / "subject")]
        run = args.folder / name.replace(", ", "-").replace(" ", "-")
        seconds, memory = measured(["train", stage, str(run), *where, *options, "--steps", str(args.steps)])
        rows.append(f"| {name} | {args.steps} | {seconds:.0f} s | {memory:.1f} GB |")
    print(f"| {args.pixels} x {args.pixels} pixels | steps | time, with loading and saving | peak memory |")
    print("|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
