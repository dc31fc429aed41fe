"""Train the embedded model from nothing: autoencoder, text encoder, UNet, CLIP's image tower; all, or one stage.

FOLDER keeps a file for each stage: what was killed goes on from there, and a stage finds the earlier ones there, or in
the model of --start-from. `torchrun --nproc-per-node 2 -m minisd train ...` trains in two processes. A variant changes
the model of --start-from for another task; an embedding (a word) and a LoRA teach it something from --pictures.
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
from minisd._internal import validation
from minisd.adapters.task_variants import CHANNELS
from minisd.cli.parser import Parser, real, whole
from minisd.errors import InputError
from minisd.models import CLIP
from minisd.sticker.training.stages import SHARES, Budget, Options, check, train_stages
from minisd.sticker.training.task_variants import train_variant
from minisd.training.fine_tuning import read_pictures, train_embedding, train_lora
from weights_loader.clip import INSIDE_A_MODEL
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.sources import resolve

ADAPTERS = ("embedding", "lora")


def add_arguments(parser: Parser) -> None:
    """The options of `minisd train`."""
    parser.add_argument("stage", choices=["all", *SHARES, "variant", *ADAPTERS], help="what to train")
    parser.add_argument("--task", choices=CHANNELS, help="of a variant: what the model of --start-from is to do")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="of an adapter: X.png, with captions X.txt")
    parser.add_argument("--prompt", default="", help="caption of pictures that have none beside them")
    parser.add_argument("--token", help="of an embedding: the new word, such as '<candy>', which the captions have")
    parser.add_argument("--like", metavar="WORD", help="of an embedding: a known word that comes near it")
    parser.add_argument("--rank", type=whole, default=4, help="of a LoRA")
    parser.add_argument("folder", type=Path, help="of the runs, which are continued; the model goes to FOLDER/model")
    parser.add_argument("--minutes", type=real, default=240.0, help="budget of the stage, or of all of them")
    parser.add_argument("--steps", type=whole, help="budget of each stage in steps: the same weights every time")
    parser.add_argument("--start-from", metavar="MODEL", help="train a model further, not a new one")
    parser.add_argument("--keep-latents", action="store_true", help="the autoencoder learns more, its latents stay")
    parser.add_argument("--pool", type=whole, default=24_000, help="scenes that a process trains the UNet on")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--compile", action="store_true", help="the UNet, which needs a C++ compiler and two minutes")
    parser.add_argument("--threads", type=whole, help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Train, or continue, and save what is whole in half precision."""
    minutes = validation.real_number(args.minutes, "minutes", 0.01, 10**5)
    steps = None if args.steps is None else validation.whole_number(args.steps, "steps", 1, 10**9)
    pool = validation.whole_number(args.pool, "pool", 64, 10**7)
    device = str(weights_loader.check_device(args.device))
    if args.threads is not None:
        torch.set_num_threads(validation.whole_number(args.threads, "threads", 1, 1024))
    if args.stage == "variant":
        return _train_variant(args, minutes, steps, pool)
    if args.stage in ADAPTERS:
        return _train_adapter(args, minutes, steps)
    shares = SHARES if args.stage == "all" else {args.stage: 1.0}
    start = None if args.start_from is None else weights_loader.load(args.start_from)
    clip = _clip_of(args.start_from) if "clip" in shares else None
    options = Options(args.folder, args.keep_latents, pool, device, args.compile)
    check(list(shares), options, start)

    budgets = {name: Budget(minutes * share, steps) for name, share in shares.items()}
    with _group() as process:
        trained = train_stages(budgets, options, start, _report if process == 0 else _silence, clip)
    if process > 0:
        return 0
    path = args.folder / "model"
    if trained.model is not None:
        weights_loader.save(trained.model, path, dtype=torch.float16, overwrite=True)
        print(f"{path}  try: minisd 'a red circle above a blue square' --model {path}")
    if trained.clip is not None:
        weights_loader.save_clip(trained.clip, trained.tokenizer, path / "clip", dtype=torch.float16, overwrite=True)
        print(f"{path / 'clip'}  CLIP")
    return 0


def _clip_of(source: str | None) -> CLIP | None:
    """The CLIP that a model comes with, if it does."""
    if source is None or not (resolve(source) / INSIDE_A_MODEL).is_dir():
        return None
    return weights_loader.load_clip(resolve(source))[0]


def _train_variant(args: argparse.Namespace, minutes: float, steps: int | None, pool: int) -> int:
    """Train the small changes of a model for another task, and save them."""
    if args.task is None or args.start_from is None:
        raise InputError("a variant needs --task and --start-from MODEL, whose UNet it changes.")
    args.folder.mkdir(parents=True, exist_ok=True)
    sd, run = weights_loader.load(args.start_from), args.folder / f"{args.task}.pt"
    with _group() as process:
        report = _report(args.task) if process == 0 else _silence(args.task)
        variant = train_variant(sd, args.task, minutes, run, report, pool=pool, steps=steps)
    if process == 0:
        path = args.folder / f"{args.task}.safetensors"
        weights = {name: tensor.half().contiguous() for name, tensor in variant.state_dict().items()}
        save_safetensors(weights, path, {"format": "pt"}, overwrite=True)
        print(f"{path}  {sum(map(torch.numel, weights.values())):,} numbers")
    return 0


def _train_adapter(args: argparse.Namespace, minutes: float, steps: int | None) -> int:
    """Teach the model of --start-from a word or a look, and save what was learned."""
    if args.pictures is None or args.start_from is None:
        raise InputError(f"{args.stage} needs --pictures FOLDER and --start-from MODEL, which it is for.")
    if args.stage == "embedding" and (args.token is None or args.like is None):
        raise InputError("embedding needs --token, the new word, and --like, a known one that comes near it.")
    rank = validation.whole_number(args.rank, "rank", 1, 1024)
    sd = weights_loader.load(args.start_from)
    pictures = read_pictures(args.pictures, sd.vae.config.sample_size, args.prompt)
    args.folder.mkdir(parents=True, exist_ok=True)
    run, path = (args.folder / f"{args.stage}.{suffix}" for suffix in ("pt", "safetensors"))
    report = _report(args.stage)
    if args.stage == "embedding":
        vectors = train_embedding(sd, pictures, args.token, args.like, minutes, run, report, steps)
        weights_loader.save_embedding(args.token, vectors, path, overwrite=True)
    else:
        changes = train_lora(sd, pictures, minutes, run, report, rank, steps)
        weights_loader.save_lora(changes.parts, sd.unet, path, overwrite=True)
    print(f"{path}  try: minisd '{pictures.captions[0]}' --model {args.start_from} --{args.stage} {path}")
    return 0


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
