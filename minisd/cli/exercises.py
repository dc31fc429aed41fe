"""`minisd exercises`: list, start, check, hint, solution, drawing with your own functions; pack and grade."""

import argparse
import functools
import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path

import weights_loader
from minisd import images
from minisd.cli import grading
from minisd.cli.output import say
from minisd.errors import InputError
from minisd.exercises.catalogue import EXERCISES, find
from minisd.exercises.exercise import Exercise
from minisd.exercises.learner_folder import all_installed, check_file, hints_read, path_of, progress, record, start
from minisd.exercises.solutions import solution_file
from minisd.pipeline import StableDiffusion

LEVELS = "*****"
WATCH_SECONDS = 0.3  # between two looks at the files
NEEDED = {
    "run": ("a prompt", "PROMPT"),
    "pack": ("a new folder", "FOLDER"),
    "grade": ("the folder of the submissions", "FOLDER"),
}


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action not in ("list", "check") and args.name is None:
        wanted, shown = NEEDED.get(args.action, ("the name of an exercise", "NAME"))
        raise InputError(f"{args.action} needs {wanted}: minisd exercises {args.action} {shown}.")
    actions = {
        "list": _list, "start": _start, "check": _check, "hint": _hint, "solution": _solution, "run": _draw,
        "pack": grading.pack, "grade": grading.grade,
    }  # fmt: skip
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    known = progress(args.folder)
    say("no    name                   level  minutes  lesson  state    title")
    for each in sorted(EXERCISES.values(), key=lambda each: each.number):
        state = known.get(each.name, {}).get("state", "")
        say(
            f"{each.number:02d}    {each.name:22} {LEVELS[: each.level]:5}  {each.minutes:7}  {each.notebook:>6}  "
            f"{state:8} {each.title}"
        )
    if all(known.get(name, {}).get("state") == "done" for name in EXERCISES):
        say("all done; draw with your functions: minisd exercises run PROMPT")
        return 0
    first = _first_open(known)
    begun = path_of(first, args.folder).is_file()
    say(f"go on with `minisd exercises {'check' if begun else 'start'} {first.name}`")
    return 0


def _first_open(known: dict[str, dict[str, object]]) -> Exercise:
    """The easiest exercise that is not done."""
    open_ones = [each for each in EXERCISES.values() if known.get(each.name, {}).get("state") != "done"]
    return min(open_ones, key=lambda each: (each.level, each.number))


def _start(args: argparse.Namespace) -> int:
    exercise = find(args.name)
    path = start(exercise, args.folder)
    say(f"{path}  write the function, then: minisd exercises check {exercise.name}")
    if exercise.needs:
        say(f"do before it: {', '.join(exercise.needs)}")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Check one file, or all; with --watch, check a file again whenever it is saved, until Ctrl-C."""
    if args.name is None or args.name == "all":
        begun = (each for each in EXERCISES.values() if path_of(each, args.folder).is_file())
        chosen = sorted(begun, key=lambda each: each.number)
        if not chosen:
            raise InputError(f"{args.folder} has no exercises yet; begin with `minisd exercises start add_noise`.")
    else:
        chosen = [find(args.name)]
    load = functools.cache(lambda: weights_loader.load(args.model))
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


def _check_one(exercise: Exercise, folder: Path, load: Callable[[], StableDiffusion]) -> bool:
    """Check a file, print what was found, keep its state and image; whether something is wrong."""
    begin = time.perf_counter()
    report = check_file(exercise, folder, load)
    say(f"{report}\n  checked in {time.perf_counter() - begin:.1f} s")
    if report.picture is not None:
        path = images.save(report.picture, folder / f"{exercise.name}.png", overwrite=True)
        say(f"  {path}  what the pipeline draws with it")
    record(folder, exercise, state=report.state)
    return report.state != "done"


def _saved(chosen: Sequence[Exercise], folder: Path) -> dict[str, int | None]:
    """When each file was last saved, in nanoseconds; None while an editor replaces it."""
    times: dict[str, int | None] = dict.fromkeys((each.name for each in chosen), None)
    for each in chosen:
        with suppress(OSError):
            times[each.name] = path_of(each, folder).stat().st_mtime_ns
    return times


def _hint(args: argparse.Namespace) -> int:
    exercise = find(args.name)
    number = min(hints_read(exercise, args.folder) + 1, len(exercise.hints))
    say(f"hint {number} of {len(exercise.hints)}: {exercise.hints[number - 1]}")
    record(args.folder, exercise, hints=number)
    return 0


def _solution(args: argparse.Namespace) -> int:
    exercise = find(args.name)
    if not args.yes:
        raise InputError(f"this shows a right function for {exercise.name}; add --yes when you have tried it yourself.")
    say(solution_file(exercise).rstrip())
    return 0


def _draw(args: argparse.Namespace) -> int:
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
