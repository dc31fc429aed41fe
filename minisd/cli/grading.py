"""`minisd exercises pack` and `minisd exercises grade`, for instructors."""

import argparse
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from minisd._internal import validation
from minisd._internal.atomic_folders import check_folder
from minisd.cli.output import say
from minisd.errors import InputError
from minisd.exercises.catalogue import EXERCISES, find
from minisd.exercises.exercise import Exercise
from minisd.exercises.graded.catalogue import GRADED
from minisd.exercises.grading import results
from minisd.exercises.grading.answers import with_answers
from minisd.exercises.grading.grades import DONE, Graded, Limits, grade_all
from minisd.exercises.grading.pack import write_pack
from minisd.exercises.grading.process import FORKS
from minisd.exercises.grading.submissions import NotReadable, Submission, submissions_in

KNOWN = EXERCISES | GRADED


def pack(args: argparse.Namespace) -> int:
    """Write what is handed out, and a file for the answers of graded tasks."""
    folder = Path(args.name)
    chosen = list(GRADED.values()) if args.exercises is None else _chosen(args.exercises)
    tasks = [each for each in chosen if each.name in GRADED]
    answers = [f"--answers {(folder / 'answers.py').as_posix()}"] if tasks else []
    names = ",".join(each.name for each in chosen)
    command = " ".join(["minisd exercises grade SUBMISSIONS --exercises", names, *answers])
    for path in write_pack([each for each in chosen if each.name in EXERCISES], tasks, folder, command):
        say(f"{path}  {'hand this out' if path.is_dir() else 'write your answers here, and keep them to yourself'}")
    say(f"grade with: {command}")
    return 0


def grade(args: argparse.Namespace) -> int:
    """Grade a folder of submissions, print the table, write the files."""
    target = args.output or Path("grades")
    seed = secrets.randbelow(2**31) if args.seed is None else validation.whole_number(args.seed, "--seed", 0, 2**31 - 1)
    limits = Limits(
        validation.real_number(args.seconds, "--seconds", 0.1, 3600),
        validation.whole_number(args.memory, "--memory", 16, 2**20),
    )
    cores = os.cpu_count() or 1
    jobs = cores if args.jobs is None else validation.whole_number(args.jobs, "--jobs", 1, 256)
    submissions = submissions_in(Path(args.name))
    exercises = _with_references(_asked_for(args, submissions), args.answers)
    check_folder(target, args.overwrite)
    if not FORKS:
        say("note: this system forks no PyTorch, so each exercise has a process of its own, which is slower.")
    begin = time.perf_counter()
    graded = grade_all(submissions, exercises, seed, limits, jobs, _report)
    results.write_results(graded, target, seed, args.overwrite)
    say("\n".join(["", results.table(graded), "", *results.legend(graded)]))
    say(f"{target}  graded in {time.perf_counter() - begin:.0f} s; the same inputs again: --seed {seed}")
    return 0


def _asked_for(args: argparse.Namespace, submissions: Sequence[Submission]) -> list[Exercise]:
    """The exercises to grade: those named, or all that somebody handed in."""
    if args.exercises is not None:
        return _chosen(args.exercises)
    known = KNOWN if args.answers is not None else EXERCISES
    found = [each for each in known.values() if any(_has(submission, each.name) for submission in submissions)]
    if not found:
        raise InputError(
            f"{args.name} has no file of any exercise, such as attention.py; check the folder, or name --exercises."
        )
    return found


def _has(submission: Submission, name: str) -> bool:
    try:
        return submission.code_of(name) is not None
    except NotReadable:
        return False


def _chosen(text: str) -> list[Exercise]:
    """The exercises of a list such as a,b,c, each once. Raises InputError."""
    chosen = [find(name.strip(), KNOWN) for name in text.split(",") if name.strip()]
    if not chosen:
        raise InputError("--exercises names none; write it as attention,guide.")
    return list({each.name: each for each in chosen}.values())


def _with_references(exercises: Sequence[Exercise], answers: Path | None) -> list[Exercise]:
    """The same exercises, graded tasks with the instructor's answers. Raises InputError."""
    tasks = [each for each in exercises if each.name in GRADED]
    if not tasks:
        return list(exercises)
    if answers is None:
        raise InputError(f"{tasks[0].name} is a graded task, whose answer is not in the library; add --answers FILE.")
    complete = {each.name: each for each in with_answers(tasks, answers)}
    return [complete.get(each.name, each) for each in exercises]


def _report(graded: Graded) -> None:
    right = sum(each.state == DONE for each in graded.grades)
    say(f"{graded.learner}: {right} of {len(graded.grades)} right")
