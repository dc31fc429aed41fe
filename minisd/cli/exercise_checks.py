"""`minisd exercises check`, `solution` and `run`: what needs PyTorch and the model."""

import argparse
import functools
import io
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path

import weights_loader
from minisd import images
from minisd.cli.output import say
from minisd.errors import InputError
from minisd.exercises.checking import Load
from minisd.exercises.exercise import Exercise
from minisd.exercises.learner_folder import path_of, record
from minisd.exercises.learner_solutions import all_installed, check_file
from minisd.exercises.pipeline_run import Runs
from minisd.exercises.sheets import SHEETS, find
from minisd.exercises.solutions import solution_file

WATCH_SECONDS = 0.3  # between two looks at the files


def check(args: argparse.Namespace) -> int:
    """Check one file, or all; with --watch, check a file again whenever it is saved, until Ctrl-C."""
    if args.name is None or args.name == "all":
        chosen = [each.exercise for each in SHEETS.values() if path_of(each.name, args.folder).is_file()]
        if not chosen:
            raise InputError(f"{args.folder} has no exercises yet; begin with `minisd exercises start add_noise`.")
    else:
        chosen = [find(args.name, SHEETS).exercise]
    load = functools.cache(lambda: Runs(weights_loader.load(args.model)))
    seen = _saved(chosen, args.folder)
    failing = sum(_check_one(exercise, args.folder, load) for exercise in chosen)
    if len(chosen) > 1:
        say(f"{len(chosen) - failing} of {len(chosen)} done")
    while args.watch:
        time.sleep(WATCH_SECONDS)
        known, seen = seen, _saved(chosen, args.folder)
        for exercise in chosen:
            if seen[exercise.name] not in (None, known[exercise.name]):
                _check_one(exercise, args.folder, load)
    return 1 if failing else 0


def _check_one(exercise: Exercise, folder: Path, load: Load) -> bool:
    """Check a file, print what was found, keep its state and image; whether something is wrong."""
    begin = time.perf_counter()
    report = check_file(exercise, folder, load)
    say(f"{report}\n  checked in {time.perf_counter() - begin:.1f} s, after PyTorch was loaded")
    if report.picture is not None:
        path = images.save(report.picture, folder / f"{exercise.name}.png", overwrite=True)
        say(f"  {path}  what the pipeline draws with it")
    record(folder, exercise.name, state=report.state)
    return report.state != "done"


def _saved(chosen: Sequence[Exercise], folder: Path) -> dict[str, int | None]:
    """When each file was last saved, in nanoseconds; None while an editor replaces it."""
    times: dict[str, int | None] = dict.fromkeys((each.name for each in chosen), None)
    for each in chosen:
        with suppress(OSError):
            times[each.name] = path_of(each.name, folder).stat().st_mtime_ns
    return times


def solution(args: argparse.Namespace) -> int:
    """Print a right function."""
    exercise = find(args.name, SHEETS).exercise
    if not args.yes:
        raise InputError(f"this shows a right function for {exercise.name}; add --yes when you have tried it yourself.")
    say(solution_file(exercise).rstrip())
    return 0


def run(args: argparse.Namespace) -> int:
    """Draw with all right functions of the folder, and compare the image with the library's."""
    target = args.output or images.free_name(Path(), "mine", ".png")
    images.check_target(target, overwrite=args.output is not None)
    sd, seed = weights_loader.load(args.model), args.seed or 0
    expected = sd(args.name, seed=seed, output_type="pt").images
    with all_installed(args.folder) as installed, redirect_stdout(io.StringIO()):
        drawn = sd(args.name, seed=seed, output_type="pt").images
    called = [name for name, each in installed.items() if each.calls]
    say(f"yours: {', '.join(called) or 'nothing yet'}; the library's: the rest")
    if others := [name for name in installed if name not in called]:
        say(f"right, but not needed to draw this: {', '.join(others)}")
    say(f"{images.save(images.to_pil(drawn)[0], target, overwrite=args.output is not None)}")
    say(f"largest difference of a pixel from the library's image: {float((drawn - expected).abs().max()) / 2:.1e} of 1")
    return 0
