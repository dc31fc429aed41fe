"""The folder of a learner: a file for each exercise, and progress.json beside them."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from minisd._internal.atomic_files import write_json
from minisd._internal.atomic_folders import make_folder
from minisd.errors import InputError
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.checking import Report, check_solution
from minisd.exercises.exercise import Exercise, Solution
from minisd.exercises.learner_code import Complaint, load

PROGRESS = "progress.json"


def start(exercise: Exercise, folder: Path) -> Path:
    """Write the file to begin with. Raises InputError if it exists, OutputError."""
    path = path_of(exercise, folder)
    if path.exists():
        raise InputError(f"{path} exists, and is yours: edit it, or remove it to begin anew.")
    make_folder(folder)
    path.write_text(exercise.starter, encoding="utf-8")
    return path


def path_of(exercise: Exercise, folder: Path) -> Path:
    """The learner's file of an exercise."""
    return folder / f"{exercise.name}.py"


def solution_of(exercise: Exercise, folder: Path) -> Solution:
    """The learner's function. Raises InputError if there is no file yet, Complaint if it cannot be run."""
    path = path_of(exercise, folder)
    if not path.is_file():
        raise InputError(f"{path} does not exist; begin with `minisd exercises start {exercise.name}`.")
    return load(str(path), exercise.name)


def check_file(exercise: Exercise, folder: Path, pipeline: Any = None) -> Report:
    """Check the learner's file, and record the result; pipeline: see `check_solution`. Raises InputError."""
    try:
        report = check_solution(exercise, solution_of(exercise, folder), pipeline)
    except Complaint as error:
        report = Report(exercise, "failing", [str(error)])
    record(folder, exercise, state=report.state)
    return report


def progress(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known about each exercise that was begun: its state, and how many hints were read."""
    try:
        found = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def record(folder: Path, exercise: Exercise, **facts: Any) -> None:
    """Add facts about an exercise to progress.json. Raises OutputError."""
    known = progress(folder)
    known[exercise.name] = {**known.get(exercise.name, {}), **facts}
    make_folder(folder)
    write_json(known, folder / PROGRESS, overwrite=True)


def next_hint(exercise: Exercise, folder: Path) -> str:
    """The next hint, stronger than the ones before; the last one again when all were read."""
    read = progress(folder).get(exercise.name, {}).get("hints", 0)
    number = min(read if isinstance(read, int) else 0, len(exercise.hints) - 1)
    record(folder, exercise, hints=number + 1)
    return f"hint {number + 1} of {len(exercise.hints)}: {exercise.hints[number]}"


@contextmanager
def all_installed(folder: Path) -> Iterator[list[str]]:
    """Within the block, every right solution in the folder takes the library's place; gives their names."""
    with ExitStack() as stack:
        names = []
        for exercise in EXERCISES.values():
            if exercise.install is None or not path_of(exercise, folder).is_file():
                continue
            try:
                solution = solution_of(exercise, folder)
            except Complaint:
                continue
            if check_solution(exercise, solution).state == "done":
                stack.enter_context(exercise.install(solution))
                names.append(exercise.name)
        yield names
