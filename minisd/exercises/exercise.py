"""An exercise: a function that a learner writes, cases that test it, known mistakes, its place in the pipeline."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Solution = Callable[..., Any]
Install = Callable[[Solution], AbstractContextManager[None]]


class Case(NamedTuple):
    """Arguments that a solution is called with, and a name for them in messages."""

    label: str
    arguments: tuple[Any, ...]


class Mistake(NamedTuple):
    """A wrong solution that learners write, and what is wrong with it."""

    says: str
    wrong: Solution


@dataclass(frozen=True)
class Exercise:
    """One exercise. Its name is that of the function, and of the learner's file.

    task: what to write, with shapes and units; the docstring of the starter file. answer: the library's function or
    class that does the same; None for a graded task, whose reference the instructor has. level: 1 (a line or two) to 3.
    notebook: the number of the lesson. needs: names of exercises to do before. variants: other right solutions, for the
    tests. solution: what `minisd exercises solution` shows, where the reference calls the library. forbidden: functions
    that do the whole work, as dotted names. install: replaces what the library does by a solution; None where the
    pipeline has no such place. run: options of the pipeline's run that reaches it.
    """

    number: int
    name: str
    title: str
    level: int
    minutes: int
    notebook: str
    task: str
    reference: Solution
    answer: Any
    cases: Callable[[], list[Case]]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    install: Install | None = None
    run: Callable[[Any], Mapping[str, Any]] = field(default=lambda sd: {})
    needs: tuple[str, ...] = ()
    variants: tuple[Solution, ...] = ()
    solution: Solution | None = None
    forbidden: tuple[str, ...] = ()
    rtol: float = 1e-4
    atol: float = 1e-5

    @property
    def points(self) -> int:
        """What it gives in a course: as much as its level."""
        return self.level

    @property
    def signature(self) -> str:
        """The first line of the function."""
        plain = inspect.Signature(
            [
                p.replace(annotation=inspect.Parameter.empty)
                for p in inspect.signature(self.reference).parameters.values()
            ]
        )
        return f"def {self.name}{plain}:"

    @property
    def starter(self) -> str:
        """The file that a learner begins with."""
        return starter_file(self.signature, self.task)


def starter_file(signature: str, task: str) -> str:
    """The file that a learner begins with: the first line of the function, and what to write."""
    lines = "\n".join(f"    {line}".rstrip() for line in task.strip().splitlines())
    return f'import torch\n\n\n{signature}\n    """{lines.strip()}\n    """\n    raise NotImplementedError\n'


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the block, an attribute of a module, class or object has another value."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
