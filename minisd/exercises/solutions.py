"""A file that solves an exercise, for learners who have tried it: a right function with the imports that it needs."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from minisd.exercises.exercise import Exercise

ROOT = Path(__file__).resolve().parents[2]


def solution_file(exercise: Exercise) -> str:
    """The text of a learner's file that is right, and at its end the place of the same in the library."""
    function = exercise.reference if exercise.solution is None else exercise.solution
    used = dict(_globals_of(function))
    helpers = {name: value for name, value in used.items() if getattr(value, "__module__", None) == function.__module__}
    imports = sorted(filter(None, (_import(name, used[name]) for name in used.keys() - helpers.keys())))
    own = _source(function).replace(f"def {function.__name__}(", f"def {exercise.name}(", 1)
    parts = ["\n".join(["from __future__ import annotations", "", *imports]).strip()]
    parts += [*map(_source, helpers.values()), f"{own}\n\n\n# {place_in_the_library(exercise)}"]
    return "\n\n\n".join(parts) + "\n"


def place_in_the_library(exercise: Exercise) -> str:
    """Where the library does the same: file, line and name."""
    answer = exercise.answer if isinstance(exercise.answer, ModuleType) else inspect.unwrap(exercise.answer)
    path = Path(inspect.getfile(answer)).resolve().relative_to(ROOT).as_posix()
    if isinstance(answer, ModuleType):
        return f"In the library: {path}"
    return f"In the library: {path}, line {inspect.getsourcelines(answer)[1]}, {answer.__qualname__}"


def _source(function: Any) -> str:
    return inspect.getsource(function).rstrip()


def _globals_of(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The global names that a function uses, and those that its helpers use, each with its value."""
    assert isinstance(function, FunctionType)
    for name in dict.fromkeys(_names(function.__code__)):
        if name not in function.__globals__ or not re.search(rf"(?<![\w.]){name}\b", _source(function)):
            continue
        value = function.__globals__[name]
        if isinstance(value, FunctionType) and value.__module__ == function.__module__ and value is not function:
            yield from _globals_of(value)
        yield name, value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _import(name: str, value: Any) -> str | None:
    """The line that makes a name known; None for a name that needs no import."""
    if isinstance(value, ModuleType):
        module = value.__name__
        return f"import {module}" if module == name else f"import {module} as {name}"
    return f"from {value.__module__} import {name}" if hasattr(value, "__module__") else None
