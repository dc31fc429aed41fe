"""Exercises that check themselves: write a part of Stable Diffusion, and see an image drawn with it.

from minisd.exercises import check
check("attention", attention)

Importing this package imports no exercise, so that the process of a graded submission holds no answers.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisd.exercises.catalogue import EXERCISES, find
    from minisd.exercises.checking import Report
    from minisd.exercises.exercise import Exercise
    from minisd.exercises.pipeline_run import Runs

__all__ = ["EXERCISES", "Exercise", "Report", "check", "find", "hints"]

FOLDER = Path("mine")
_MODULES = {"EXERCISES": "catalogue", "find": "catalogue", "Report": "checking", "Exercise": "exercise"}


def check(name: str, solution: Callable[..., Any] | None = None, model: str = "sticker") -> "Report":
    """Check a function for an exercise, or the file in the folder "mine"; print what was found, and return it.

    model: the pipeline that the function is put into, as for `weights_loader.load`. Raises InputError for an unknown
    exercise.
    """
    from minisd.exercises.checking import check_solution
    from minisd.exercises.learner_solutions import check_file
    from minisd.exercises.sheets import SHEETS, find

    exercise = find(name, SHEETS).exercise
    load = functools.partial(_runs, model)
    report = check_file(exercise, FOLDER, load) if solution is None else check_solution(exercise, solution, load)
    print(report)
    return report


def hints(name: str) -> None:
    """Print all hints of an exercise, the weakest first. Raises InputError."""
    from minisd.exercises.sheets import SHEETS, find

    for number, text in enumerate(find(name, SHEETS).hints, 1):
        print(f"{number}. {text}")


@functools.lru_cache(maxsize=1)
def _runs(model: str) -> "Runs":
    """The pipeline of the last check, whose next check begins at once."""
    import weights_loader
    from minisd.exercises.pipeline_run import Runs

    return Runs(weights_loader.load(model))


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f"minisd.exercises.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'minisd.exercises' has no attribute {name!r}; it has {', '.join(__all__)}")
