"""Train the embedded model from nothing: the autoencoder, then the UNet with its text encoder, on Sticker World.

`torchrun --nproc-per-node 2 -m minisd train ...` trains in two processes, whose gradients are averaged.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

import weights_loader
from minisd import validation
from minisd.cli.parser import Parser, real, whole
from minisd.errors import InputError
from minisd.pipeline import Defaults, StableDiffusion
from minisd.training.autoencoder import train_vae
from minisd.training.text_to_image import SCHEDULER, TAUGHT_WORDS, check_sizes, train_text_to_image

DEFAULTS = Defaults(num_inference_steps=20, guidance_scale=3.0, words=TAUGHT_WORDS)


def add_arguments(parser: Parser) -> None:
    """The options of `minisd train`."""
    parser.add_argument("folder", type=Path, help="of the runs, which are continued; the model goes to FOLDER/model")
    parser.add_argument("--vae-minutes", type=real, help="budget of the autoencoder (25; 0 with --start-from: kept)")
    parser.add_argument("--unet-minutes", type=real, default=85.0, help="budget of the UNet and text encoder")
    parser.add_argument(
        "--vae-steps", type=whole, help="the autoencoder's budget in steps: the same weights every time"
    )
    parser.add_argument("--unet-steps", type=whole, help="likewise")
    parser.add_argument("--start-from", metavar="MODEL", help="train a model further, not a new one")
    parser.add_argument("--pool", type=whole, default=24_000, help="scenes to train the UNet on")
    parser.add_argument("--threads", type=whole, help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Train both stages, or continue them, and save the model in half precision."""
    vae_minutes = (25.0 if args.start_from is None else 0.0) if args.vae_minutes is None else args.vae_minutes
    validation.real_number(vae_minutes, "vae-minutes", 0.01 if args.start_from is None else 0.0, 10**5)
    validation.real_number(args.unet_minutes, "unet-minutes", 0.01, 10**5)
    steps = {
        name: None if value is None else validation.whole_number(value, name, 1, 10**9)
        for name, value in (("vae-steps", args.vae_steps), ("unet-steps", args.unet_steps))
    }
    pool = validation.whole_number(args.pool, "pool", 64, 10**7)
    if args.threads is not None:
        torch.set_num_threads(validation.whole_number(args.threads, "threads", 1, 1024))
    keeps_vae = vae_minutes == 0 and steps["vae-steps"] is None
    _check_folder(args.folder, keeps_vae)
    start = None if args.start_from is None else weights_loader.load(args.start_from)
    if start is not None:
        check_sizes(start)
    args.folder.mkdir(parents=True, exist_ok=True)

    with _group() as process:
        report = _report if process == 0 else _silence
        if start is not None and keeps_vae:
            vae = start.vae
        else:
            vae = train_vae(
                vae_minutes,
                args.folder / "vae.pt",
                report("vae"),
                start=start.vae if start else None,
                steps=steps["vae-steps"],
            )
        tokenizer, networks = train_text_to_image(
            vae,
            args.unet_minutes,
            args.folder / "unet.pt",
            report("unet"),
            pool=pool,
            start=start,
            steps=steps["unet-steps"],
        )
    if process > 0:
        return 0
    sd = StableDiffusion(tokenizer, networks.text_encoder.eval(), vae.eval(), networks.unet.eval(), SCHEDULER, DEFAULTS)
    path = weights_loader.save(sd, args.folder / "model", dtype=torch.float16, overwrite=True)
    print(f"{path}  try: minisd 'a red circle above a blue square' --model {path}")
    return 0


def _check_folder(folder: Path, keeps_vae: bool) -> None:
    """A UNet is worth nothing with another autoencoder: refuse to continue a run with one."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the runs.")
    if keeps_vae and (folder / "vae.pt").exists():
        raise InputError(f"{folder} has its own autoencoder; continue it with --vae-minutes, or name a new folder.")
    if not keeps_vae and (folder / "unet.pt").exists() and not (folder / "vae.pt").exists():
        raise InputError(f"{folder} has a UNet for a kept autoencoder; continue it without --vae-minutes.")


@contextmanager
def _group() -> Iterator[int]:
    """Join the processes that torchrun started, if it did; gives this one's number."""
    if not dist.is_torchelastic_launched():
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def _silence(stage: str) -> Callable[[str], None]:
    return lambda line: None


def _report(stage: str) -> Callable[[str], None]:
    def report(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {stage:4} {line}", file=sys.stderr, flush=True)

    return report
