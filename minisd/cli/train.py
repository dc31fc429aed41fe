"""`minisd train`: train the embedded model or a variant of it, fine-tune any model, and save the result."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import weights_loader
from minisd._internal import validation
from minisd._internal.atomic_folders import make_folder, replace_files
from minisd.cli.distill import distill
from minisd.cli.fine_tune import fine_tune
from minisd.cli.fine_tune_options import FINE_TUNINGS, check_stage
from minisd.cli.output import until_interrupted
from minisd.errors import InputError
from minisd.models import CLIP
from minisd.sticker.training.stages import Networks, TrainingOptions, check, shares, train_stages
from minisd.sticker.training.task_variants import train_variant
from minisd.training.trainer import TrainingBudget, TrainingRun
from weights_loader.clip import CLIP_FOLDER
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.saving import MODEL_FILES
from weights_loader.sources import resolve

LONGEST_WAIT = timedelta(days=1)  # of one process of torchrun for another one, which may draw images of a class


def run(args: argparse.Namespace) -> int:
    """Train, or continue a run, save the result, print the time and the device."""
    return until_interrupted(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    check_stage(args)
    minutes = validation.real_number(args.minutes, "--minutes", 0.01, 10**5)
    steps = None if args.steps is None else validation.whole_number(args.steps, "--steps", 1, 10**9)
    pool = validation.whole_number(args.pool, "--pool", 64, 10**7)
    device = str(weights_loader.check_device(args.device or weights_loader.best_device()))
    if args.threads is not None:
        torch.set_num_threads(validation.whole_number(args.threads, "--threads", 1, 1024))
    if args.stage == "variant":
        rank = _train_variant(args, minutes, steps, pool)
    elif args.stage in FINE_TUNINGS:
        rank = _fine_tune(args, minutes, steps, device)
    elif args.stage == "distill":
        with _process_group() as rank:
            report = _reporter(args.stage) if rank == 0 else _silent_reporter(args.stage)
            distill(args, TrainingBudget(minutes, steps), device, rank, report)
    else:
        rank = _train_stages(args, minutes, steps, pool, device)
    if rank == 0:
        where = f"the UNet on {device}" if args.stage in ("all", "unet", *FINE_TUNINGS, "distill") else "on cpu"
        print(f"{(time.perf_counter() - began) / 60:.1f} minutes, {where}")
    return 0


def _train_stages(args: argparse.Namespace, minutes: float, steps: int | None, pool: int, device: str) -> int:
    """Train the stages, save the parts that are complete in half precision; returns the rank of this process."""
    start = None if args.start_from is None else weights_loader.load(args.start_from)
    budgets = {name: TrainingBudget(minutes * share, steps) for name, share in shares(args.stage, start).items()}
    clip = _clip_of(args.start_from) if "clip" in budgets else None
    options = TrainingOptions(args.folder, pool, device, args.compile)
    check(list(budgets), options, start)

    with _process_group() as rank:
        trained = train_stages(budgets, options, start, _reporter if rank == 0 else _silent_reporter, clip)
    if rank > 0:
        return rank
    path = args.folder / "model"
    if trained.model is not None:
        kept = path / CLIP_FOLDER if trained.clip is None and "text" not in budgets else None
        replace_files(path, lambda folder: _write_model(trained, kept, folder), MODEL_FILES, overwrite=True)
        print(f"{path}  try: minisd 'a red circle above a blue square' --model {path}")
    elif trained.clip is not None:
        _write_clip(trained, path)
    if trained.clip is not None:
        print(f"{path / CLIP_FOLDER}  CLIP")
    return rank


def _write_model(trained: Networks, kept: Path | None, folder: Path) -> None:
    """Write the model, and its CLIP: the trained one or, if its text encoder is the same, the one of before."""
    assert trained.model is not None
    weights_loader.save(trained.model, folder, dtype=torch.float16)
    if trained.clip is not None:
        _write_clip(trained, folder)
    elif kept is not None and kept.is_dir():
        shutil.copytree(kept, folder / CLIP_FOLDER)


def _write_clip(trained: Networks, folder: Path) -> None:
    assert trained.clip is not None
    path = folder / CLIP_FOLDER
    weights_loader.save_clip(trained.clip, trained.tokenizer, path, dtype=torch.float16, overwrite=True)


def _clip_of(source: str | None) -> CLIP | None:
    """The CLIP in the folder of a model, if there is one."""
    if source is None or not (resolve(source) / CLIP_FOLDER).is_dir():
        return None
    return weights_loader.load_clip(resolve(source))[0]


def _train_variant(args: argparse.Namespace, minutes: float, steps: int | None, pool: int) -> int:
    """Train a variant of --start-from for another task, save its weights; returns the rank of this process."""
    if args.task is None or args.start_from is None:
        raise InputError("a variant needs --task and --start-from MODEL, the model to adapt.")
    make_folder(args.folder)
    sd, checkpoint = weights_loader.load(args.start_from), args.folder / f"{args.task}.pt"
    with _process_group() as rank:
        report = _reporter(args.task) if rank == 0 else _silent_reporter(args.task)
        variant = train_variant(sd, args.task, TrainingRun(checkpoint, TrainingBudget(minutes, steps), report), pool)
    if rank == 0:
        path = args.folder / f"{args.task}.safetensors"
        weights = {name: tensor.half().contiguous() for name, tensor in variant.state_dict().items()}
        save_safetensors(weights, path, {"format": "pt"}, overwrite=True)
        print(f"{path}  {sum(map(torch.numel, weights.values())):,} parameters")
    return rank


def _fine_tune(args: argparse.Namespace, minutes: float, steps: int | None, device: str) -> int:
    """Fine-tune the model of --start-from, save the result; returns the rank of this process."""
    with _process_group() as rank:
        report = _reporter(args.stage) if rank == 0 else _silent_reporter(args.stage)
        fine_tune(args, TrainingBudget(minutes, steps), device, rank, report)
    return rank


@contextmanager
def _process_group() -> Iterator[int]:
    """Join the process group of torchrun, if there is one; yields the rank of this process."""
    if not dist.is_torchelastic_launched():
        yield 0
        return
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def _silent_reporter(stage: str) -> Callable[[str], None]:
    return lambda line: None


def _reporter(stage: str) -> Callable[[str], None]:
    def report(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {stage:4} {line}", file=sys.stderr, flush=True)

    return report
