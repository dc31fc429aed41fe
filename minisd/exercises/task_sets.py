"""Tasks without answers: what to write, inputs and expected results in a file, and no reference.

An instructor writes an Exercise as those in `tasks`, keeps it, and writes what others may see with `write_task`. Six
such tasks are in `graded`; the library has no function that does what they ask.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisd.errors import FileFormatError, InputError
from minisd.exercises.exercise import Case, Exercise
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.formats.weight_file import open_weights

GRADED = Path(__file__).resolve().parent / "graded"
TASK, CASES = "task.json", "cases.safetensors"
FACTS = ("number", "name", "title", "level", "minutes", "notebook", "task", "hints")


def write_task(exercise: Exercise, folder: Path) -> None:
    """Write an exercise without its reference: task.json, and cases.safetensors with the results of the reference.

    Arguments that are no tensors must be numbers. Raises OutputError, InputError.
    """
    names = list(inspect.signature(exercise.reference).parameters)
    tensors: dict[str, Tensor] = {}
    labels: list[str] = []
    numbers: list[dict[str, float]] = []
    for k, case in enumerate(exercise.cases()):
        labels.append(case.label)
        numbers.append({})
        for name, value in zip(names, case.arguments, strict=True):
            if isinstance(value, Tensor):
                tensors[f"{k}.{name}"] = value.contiguous()
            elif isinstance(value, int | float):
                numbers[-1][name] = value
            else:
                raise InputError(f"{name} of {case.label!r} is {type(value).__name__}, expected a tensor or a number.")
        tensors[f"{k}.expected"] = exercise.reference(*case.arguments).contiguous()
    facts: dict[str, Any] = {name: getattr(exercise, name) for name in FACTS}
    facts |= {"arguments": names, "labels": labels, "numbers": numbers}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TASK).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_safetensors(tensors, folder / CASES, {"format": "pt"}, overwrite=True)


def read_task(folder: Path) -> Exercise:
    """The exercise in a folder; its reference knows the results of its cases alone. Raises FileFormatError."""
    try:
        facts = json.loads((folder / TASK).read_text(encoding="utf-8"))
        file = open_weights(folder / CASES)
        names, cases, results = facts["arguments"], [], []
        for k, (label, numbers) in enumerate(zip(facts["labels"], facts["numbers"], strict=True)):
            values = tuple(numbers[n] if n in numbers else file.tensor(f"{k}.{n}").clone() for n in names)
            cases.append(Case(label, values))
            results.append(file.tensor(f"{k}.expected").clone())
        options = {name: facts[name] for name in FACTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{folder} holds no task ({error}), expected {TASK} and {CASES}.") from error

    def reference(*arguments: Any) -> Tensor:
        found = [k for k, case in enumerate(cases) if _are(case.arguments, arguments)]
        if not found:
            raise InputError("a task without a reference knows the results of its own cases alone.")
        return results[found[0]]

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    reference.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    reference.__name__ = options["name"]
    options["hints"] = tuple(options["hints"])
    return Exercise(reference=reference, answer=None, cases=lambda: cases, mistakes=(), **options)


def read_set(folder: Path = GRADED) -> dict[str, Exercise]:
    """All tasks in the folders of a folder, by name. Raises FileFormatError, InputError if there are none."""
    found = [read_task(path.parent) for path in sorted(folder.glob(f"*/{TASK}"))]
    if not found:
        raise InputError(f"{folder} has no tasks, expected folders with {TASK} and {CASES}.")
    return {each.name: each for each in sorted(found, key=lambda each: each.number)}


def _are(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether all arguments are equal."""
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(one, other, strict=True)
    )
