"""The functions in the folder of a learner: checking one, drawing with all of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from minisd.errors import InputError
from minisd.exercises.checking import Load, Report, check_solution
from minisd.exercises.exercise import Exercise, Solution
from minisd.exercises.learner_code import Complaint
from minisd.exercises.learner_code import load as load_function
from minisd.exercises.learner_folder import path_of
from minisd.exercises.pipeline_run import Counted
from minisd.exercises.sheets import SHEETS


def solution_of(exercise: Exercise, folder: Path) -> Solution:
    """The learner's function. Raises InputError if there is no file yet, Complaint if it cannot be run."""
    path = path_of(exercise.name, folder)
    if not path.is_file():
        raise InputError(f"{path} does not exist; begin with `minisd exercises start {exercise.name}`.")
    return load_function(str(path), exercise.name)


def check_file(exercise: Exercise, folder: Path, load: Load | None = None) -> Report:
    """Check the learner's file; load: see `check_solution`. Raises InputError."""
    try:
        return check_solution(exercise, solution_of(exercise, folder), load)
    except Complaint as error:
        return Report(exercise, "failing", [str(error)])


@contextmanager
def all_installed(folder: Path) -> Iterator[dict[str, Counted]]:
    """Within the block, every right solution in the folder takes the library's place; gives them by name."""
    with ExitStack() as stack:
        installed: dict[str, Counted] = {}
        begun = (sheet.exercise for sheet in SHEETS.values() if path_of(sheet.name, folder).is_file())
        for exercise in begun:
            if exercise.install is None:
                continue
            try:
                solution = solution_of(exercise, folder)
            except Complaint:
                continue
            if check_solution(exercise, solution).state == "done":
                installed[exercise.name] = Counted(solution)
                stack.enter_context(exercise.install(installed[exercise.name]))
        yield installed
