"""What a learner reads of an exercise before writing it.

It is read from the text of the exercise's file, which is not run: that file imports PyTorch, which takes seconds.
"""

import ast
import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minisd.errors import InputError
from minisd.exercises.exercise import Exercise, starter_file

TASKS = Path(__file__).with_name("tasks")


@dataclass(frozen=True)
class Sheet:
    """The fields of an exercise that its learner reads; see Exercise."""

    number: int
    name: str
    title: str
    level: int
    minutes: int
    notebook: str
    task: str
    signature: str
    hints: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def starter(self) -> str:
        """The file that a learner begins with."""
        return starter_file(self.signature, self.task)

    @property
    def exercise(self) -> Exercise:
        """The exercise itself; the first use imports its file."""
        found: Exercise = importlib.import_module(f"minisd.exercises.tasks.{self.name}").EXERCISE
        return found


Known = TypeVar("Known", Sheet, Exercise)


def find(name: str, known: Mapping[str, Known]) -> Known:
    """The exercise with this name, or number. Raises InputError, which names the nearest ones."""
    for each in known.values():
        if name in (each.name, str(each.number), f"{each.number:02d}"):
            return each
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`minisd exercises list` shows all."
    raise InputError(f"there is no exercise {name!r}; {hint}")


def _read(path: Path) -> Sheet:
    """The sheet of the exercise in a file, whose TASK and fields are literals."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assigned = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
    (function,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == path.stem)
    call = assigned["EXERCISE"]
    assert isinstance(call, ast.Call)
    wanted = set(Sheet.__dataclass_fields__) - {"task", "signature"}
    facts: dict[str, Any] = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in wanted}
    for argument in function.args.args:
        argument.annotation = None
    signature = f"def {path.stem}({ast.unparse(function.args)}):"
    return Sheet(task=ast.literal_eval(assigned["TASK"]), signature=signature, **facts)


_ALL = sorted(map(_read, TASKS.glob("[!_]*.py")), key=lambda each: each.number)
SHEETS: dict[str, Sheet] = {each.name: each for each in _ALL}
