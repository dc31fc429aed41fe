"""`minisd exercises`: list, start, check, hint, solution, and drawing with your own functions."""

import argparse
import inspect
import time
import zipfile
from pathlib import Path

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd._internal.atomic_files import check_target
from minisd.cli.output import say
from minisd.errors import InputError
from minisd.exercises.catalogue import EXERCISES, find
from minisd.exercises.exercise import Exercise
from minisd.exercises.grading import grade_all, write_grades
from minisd.exercises.learner_folder import all_installed, check_file, next_hint, path_of, progress, start
from minisd.exercises.task_sets import GRADED, read_set
from minisd.pipeline import StableDiffusion

LEVELS = "*****"


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action in ("start", "hint", "solution", "run") and args.name is None:
        wanted = "a prompt" if args.action == "run" else "the name of an exercise"
        raise InputError(f"{args.action} needs {wanted}: minisd exercises {args.action} NAME.")
    actions = {
        "list": _list, "start": _start, "check": _check, "hint": _hint, "solution": _solution, "run": _draw,
        "pack": _pack, "grade": _grade,
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
    say(f"begin with `minisd exercises start {_first_open(known).name}`")
    return 0


def _first_open(known: dict[str, dict[str, object]]) -> Exercise:
    """The easiest exercise that is not done."""
    open_ones = [each for each in EXERCISES.values() if known.get(each.name, {}).get("state") != "done"]
    return min(open_ones or EXERCISES.values(), key=lambda each: (each.level, each.number))


def _start(args: argparse.Namespace) -> int:
    exercise = find(args.name)
    path = start(exercise, args.folder)
    say(f"{path}  write the function, then: minisd exercises check {exercise.name}")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.name is None or args.name == "all":
        chosen = [each for each in EXERCISES.values() if path_of(each, args.folder).is_file()]
        if not chosen:
            raise InputError(f"{args.folder} has no exercises yet; begin with `minisd exercises start add_noise`.")
    else:
        chosen = [find(args.name)]
    loaded: list[StableDiffusion] = []

    def load() -> StableDiffusion:
        if not loaded:
            loaded.append(weights_loader.load(args.model))
        return loaded[0]

    failing = 0
    for exercise in chosen:
        begin = time.perf_counter()
        report = check_file(exercise, args.folder, load)
        say(f"{report}\n  checked in {time.perf_counter() - begin:.1f} s")
        if report.picture is not None:
            say(f"  {images.save(report.picture, args.folder / f'{exercise.name}.png', overwrite=True)}")
        failing += report.state != "done"
    return 1 if failing else 0


def _hint(args: argparse.Namespace) -> int:
    say(next_hint(find(args.name), args.folder))
    return 0


def _solution(args: argparse.Namespace) -> int:
    exercise = find(args.name)
    if not args.yes:
        raise InputError(
            f"this shows the library's code for {exercise.name}; add --yes when you have tried it yourself."
        )
    say(f"{inspect.getsourcefile(exercise.answer)}\n{inspect.getsource(exercise.answer).rstrip()}")
    return 0


def _tasks(args: argparse.Namespace) -> Path | None:
    """The folder of --tasks."""
    return GRADED if args.tasks == "graded" else None if args.tasks is None else Path(args.tasks)


def _chosen(args: argparse.Namespace) -> list[Exercise]:
    """The exercises of --tasks and --only. Raises InputError."""
    tasks = _tasks(args)
    known = EXERCISES if tasks is None else read_set(tasks)
    return list(known.values()) if args.only is None else [find(name.strip(), known) for name in args.only.split(",")]


def _pack(args: argparse.Namespace) -> int:
    """A .zip of starter files and a README, without references and mistakes."""
    target = args.output or Path("exercises.zip")
    check_target(target, overwrite=False)
    chosen = _chosen(args)
    readme = [f"{each.name}.py  {each.title}, {each.level} points, {each.minutes} minutes" for each in chosen]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", "\n".join(["Write the functions in these files.", "", *readme, ""]))
        for exercise in chosen:
            archive.writestr(f"{exercise.name}.py", exercise.starter)
    say(f"{target}  {len(chosen)} exercises")
    return 0


def _grade(args: argparse.Namespace) -> int:
    """Grade all submissions, print and write the table."""
    if args.submissions is None:
        raise InputError("grade needs --submissions FOLDER, with a folder or a file for each learner.")
    names = ("timeout", "memory", "jobs")
    seconds, memory, jobs = (validation.whole_number(getattr(args, name), f"--{name}", 1, 10**6) for name in names)
    graded = grade_all(args.submissions, _chosen(args), seconds, memory, jobs, _tasks(args))
    folder = args.output or Path("grades")
    write_grades(graded, folder)
    for each in graded:
        say(f"{each.name:24} {each.points:5g}  {'; '.join(each.notes)}".rstrip())
    say(f"{folder}/grades.csv  {len(graded)} submissions")
    return 0


def _draw(args: argparse.Namespace) -> int:
    target = args.output or images.free_name(Path(), "mine", ".png")
    images.check_target(target, overwrite=args.output is not None)
    sd = weights_loader.load(args.model)
    expected = sd(args.name, seed=args.seed, output_type="pt").images
    with all_installed(args.folder) as names:
        drawn = sd(args.name, seed=args.seed, output_type="pt").images
    say(f"yours: {', '.join(names) or 'nothing yet'}; the library's: the rest")
    say(f"{images.save(images.to_pil(drawn)[0], target, overwrite=args.output is not None)}")
    say(f"largest difference of a pixel from the library's image: {float((drawn - expected).abs().max()) / 2:.1e} of 1")
    return 0
