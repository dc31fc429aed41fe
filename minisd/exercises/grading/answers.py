"""The instructor's own file with the answers of graded tasks, which is nowhere in the library."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from minisd.errors import InputError
from minisd.exercises.exercise import Exercise, Mistake

HEAD = '''"""Answers of graded tasks; keep this file to yourself.

    {command}

Each function gets the same arguments as the learners'. MISTAKES is optional: wrong functions and what is wrong with
them, such as MISTAKES = {{"name": [("the noise is not scaled", function), ...]}}; learners who make them are told.
"""

import torch

'''


def template(tasks: Sequence[Exercise], command: str) -> str:
    """A file to fill in."""
    stubs = (task.starter.removeprefix("import torch\n\n\n") for task in tasks)
    return HEAD.format(command=command) + "\n" + "\n\n".join(stubs)


def with_answers(tasks: Sequence[Exercise], file: Path) -> list[Exercise]:
    """Graded tasks with the references of a file. Raises InputError."""
    module = _module(file)
    return [_complete(task, module, file) for task in tasks]


def _module(file: Path) -> ModuleType:
    if not file.is_file():
        raise InputError(f"--answers is {file}, which is no file; `minisd exercises pack` writes one to fill in.")
    module = ModuleType("instructors_answers")
    module.__file__ = str(file)
    try:
        exec(compile(file.read_bytes(), file, "exec"), module.__dict__)  # an import would leave a copy, a .pyc file
    except Exception as error:
        raise InputError(f"{file} cannot be run ({type(error).__name__}: {error}).") from error
    return module


def _complete(task: Exercise, module: ModuleType, file: Path) -> Exercise:
    reference: Any = getattr(module, task.name, None)
    if not callable(reference):
        raise InputError(
            f"{file} has no function {task.name}, the answer of this task; `minisd exercises pack` shows it."
        )
    try:
        mistakes = tuple(
            Mistake(str(says), wrong) for says, wrong in getattr(module, "MISTAKES", {}).get(task.name, ())
        )
    except (TypeError, ValueError, AttributeError):
        raise InputError(f"MISTAKES of {file} must be {{name: [(sentence, function), ...]}}.") from None
    for case in task.cases():
        try:
            result = reference(*copy.deepcopy(case.arguments))
        except Exception as error:  # of the instructor's code
            raise InputError(
                f"{task.name} of {file} fails in the case {case.label!r} ({type(error).__name__}: {error})."
            ) from error
        if not isinstance(result, torch.Tensor) or not result.isfinite().all():
            raise InputError(f"{task.name} of {file} gives no finite tensor in the case {case.label!r}.")
    return replace(task, reference=reference, mistakes=mistakes)
