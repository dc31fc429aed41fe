"""Train the embedded model from nothing: the autoencoder, then the UNet with its text encoder, on Sticker World."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import weights_loader
from minisd import validation
from minisd.cli.parser import Parser, real, whole
from minisd.errors import InputError
from minisd.pipeline import Defaults, StableDiffusion
from minisd.training.autoencoder import train_vae
from minisd.training.text_to_image import SCHEDULER, train_text_to_image

DEFAULTS = Defaults(num_inference_steps=20, guidance_scale=3.0)


def add_arguments(parser: Parser) -> None:
    """The options of `minisd train`."""
    parser.add_argument("folder", type=Path, help="of the runs, which are continued; the model goes to FOLDER/model")
    parser.add_argument("--vae-minutes", type=real, default=25.0, help="budget of the autoencoder")
    parser.add_argument("--unet-minutes", type=real, default=85.0, help="budget of the UNet and text encoder")
    parser.add_argument("--start-from", metavar="MODEL", help="keep a model's autoencoder, train its UNet further")
    parser.add_argument("--pool", type=whole, default=24_000, help="scenes to train the UNet on")
    parser.add_argument("--threads", type=whole, help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Train both stages, or continue them, and save the model in half precision."""
    for minutes, name in ((args.vae_minutes, "vae-minutes"), (args.unet_minutes, "unet-minutes")):
        validation.real_number(minutes, name, 0.01, 10**5)
    pool = validation.whole_number(args.pool, "pool", 64, 10**7)
    if args.threads is not None:
        torch.set_num_threads(validation.whole_number(args.threads, "threads", 1, 1024))
    if args.folder.exists() and not args.folder.is_dir():
        raise InputError(f"{args.folder} is a file, expected a folder for the runs.")
    args.folder.mkdir(parents=True, exist_ok=True)

    start = None if args.start_from is None else weights_loader.load(args.start_from)
    vae = train_vae(args.vae_minutes, args.folder / "vae.pt", _report("vae")) if start is None else start.vae
    tokenizer, networks = train_text_to_image(
        vae, args.unet_minutes, args.folder / "unet.pt", _report("unet"), pool=pool, start=start
    )
    sd = StableDiffusion(tokenizer, networks.text_encoder.eval(), vae.eval(), networks.unet.eval(), SCHEDULER, DEFAULTS)
    path = weights_loader.save(sd, args.folder / "model", dtype=torch.float16, overwrite=True)
    print(f"{path}  try: minisd 'a red circle above a blue square' --model {path}")
    return 0


def _report(stage: str) -> Callable[[str], None]:
    def report(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {stage:4} {line}", file=sys.stderr, flush=True)

    return report
