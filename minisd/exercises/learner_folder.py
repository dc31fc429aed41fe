"""The folder of a learner: a file for each exercise, and progress.json beside them."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from minisd._internal.atomic_files import write_json
from minisd._internal.atomic_folders import make_folder
from minisd.errors import InputError, OutputError
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.checking import Load, Report, check_solution
from minisd.exercises.exercise import Exercise, Solution
from minisd.exercises.learner_code import Complaint
from minisd.exercises.learner_code import load as load_function
from minisd.exercises.pipeline_run import Counted

PROGRESS = "progress.json"


def start(exercise: Exercise, folder: Path) -> Path:
    """Write the file to begin with. Raises InputError if it exists, OutputError."""
    path = path_of(exercise, folder)
    if path.exists():
        raise InputError(f"{path} exists, and is yours: edit it, or remove it to begin anew.")
    make_folder(folder)
    try:
        path.write_text(exercise.starter, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); name another --folder.") from error
    return path


def path_of(exercise: Exercise, folder: Path) -> Path:
    """The learner's file of an exercise."""
    return folder / f"{exercise.name}.py"


def solution_of(exercise: Exercise, folder: Path) -> Solution:
    """The learner's function. Raises InputError if there is no file yet, Complaint if it cannot be run."""
    path = path_of(exercise, folder)
    if not path.is_file():
        raise InputError(f"{path} does not exist; begin with `minisd exercises start {exercise.name}`.")
    return load_function(str(path), exercise.name)


def check_file(exercise: Exercise, folder: Path, load: Load | None = None) -> Report:
    """Check the learner's file; load: see `check_solution`. Raises InputError."""
    try:
        return check_solution(exercise, solution_of(exercise, folder), load)
    except Complaint as error:
        return Report(exercise, "failing", [str(error)])


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


def hints_read(exercise: Exercise, folder: Path) -> int:
    """How many hints of an exercise were read."""
    read = progress(folder).get(exercise.name, {}).get("hints", 0)
    return read if isinstance(read, int) else 0


@contextmanager
def all_installed(folder: Path) -> Iterator[dict[str, Counted]]:
    """Within the block, every right solution in the folder takes the library's place; gives them by name."""
    with ExitStack() as stack:
        installed: dict[str, Counted] = {}
        for exercise in EXERCISES.values():
            if exercise.install is None or not path_of(exercise, folder).is_file():
                continue
            try:
                solution = solution_of(exercise, folder)
            except Complaint:
                continue
            if check_solution(exercise, solution).state == "done":
                installed[exercise.name] = Counted(solution)
                stack.enter_context(exercise.install(installed[exercise.name]))
        yield installed
