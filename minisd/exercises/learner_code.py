"""Running a learner's code: what goes wrong becomes one sentence with the line of their file."""

import contextlib
import copy
import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from minisd._internal.messages import printable

SECONDS = 10.0  # for one call of a learner's function
RUNNING: list[str] = []  # the file whose code runs now; the grading process listens


class Complaint(Exception):
    """What is wrong with a learner's code, in one sentence."""


class NotWritten(Complaint):
    """The function still raises NotImplementedError."""


class _TooSlow(BaseException):
    """The time is over; not an Exception, so that a learner's `except Exception` does not catch it."""


def load(path: str, name: str) -> Callable[..., Any]:
    """The function `name` in a file. Raises Complaint, FileNotFoundError."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    module = ModuleType(f"learner_{name}")
    module.__file__ = path
    with guarded(path):
        exec(compile(text, path, "exec"), module.__dict__)
    found = getattr(module, name, None)
    if found is None:
        others = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise Complaint(f"{path} has no function {name}; it has {', '.join(others) or 'none'}.")
    if isinstance(found, type):
        raise Complaint(f"{name} is a class, expected a function.")
    if not callable(found):
        raise Complaint(f"{name} is {type(found).__name__}, expected a function.")
    return found


def call(solution: Callable[..., Any], arguments: Sequence[Any], forbidden: Sequence[str] = ()) -> Any:
    """The result of a solution for copies of the arguments.

    Raises Complaint if it fails, takes longer than SECONDS, changes its arguments or the random numbers of the process,
    or calls what is forbidden.
    """
    given = [_copied(each) for each in arguments]
    state = torch.random.get_rng_state()
    with contextlib.ExitStack() as stack:
        for name in forbidden:
            stack.enter_context(_refused(name))
        stack.enter_context(guarded(file_of(solution)))
        result = solution(*given)
    if not torch.equal(torch.random.get_rng_state(), state):
        torch.random.set_rng_state(state)
        raise Complaint("your function draws random numbers; its result must depend on its arguments alone.")
    for before, after in zip(arguments, given, strict=True):
        if isinstance(before, Tensor) and not _same(before, after):
            raise Complaint(
                "your function changes one of its arguments; compute a new tensor, without += and x[...] =."
            )
    return result


def _copied(value: Any) -> Any:
    return value.clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else copy.copy(value)


def _same(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before, after)


def file_of(solution: Callable[..., Any]) -> str:
    """The file, or notebook cell, of a function."""
    code = getattr(solution, "__code__", None)
    return "" if code is None else str(code.co_filename)


@contextlib.contextmanager
def guarded(path: str) -> Iterator[None]:
    """Within the block, errors and delays of the code in a file become Complaints. Raises Complaint, NotWritten."""
    RUNNING.append(path)
    try:
        with _limited(SECONDS):
            yield
    except Complaint:
        raise
    except NotImplementedError as error:
        raise NotWritten("nothing is written yet: the function raises NotImplementedError.") from error
    except SyntaxError as error:
        raise Complaint(f"line {error.lineno}: {error.msg}.") from error
    except _TooSlow as error:
        raise Complaint(
            f"{_where(path, error)}it takes longer than {SECONDS:g} seconds; does a loop never end?"
        ) from error
    except SystemExit as error:
        raise Complaint(f"{_where(path, error)}it ends the program; remove exit().") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = printable(str(error)).split("\n")[0][:300]
        raise Complaint(f"{_where(path, error)}{type(error).__name__}{f': {text}' if text else ''}.") from error
    finally:
        RUNNING.pop()


def _where(path: str, error: BaseException) -> str:
    """The line of the learner's file in which an error was raised; empty if it was not there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"line {lines[-1]}: " if lines else ""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _TooSlow after some seconds, where the system can: in the main thread, not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    """Within the block, calling a function of a module raises Complaint."""
    module_name, _, attribute = name.rpartition(".")
    module = sys.modules.get(module_name) or importlib.import_module(module_name)

    def refuse(*arguments: object, **options: object) -> None:
        raise Complaint(f"{attribute} does the whole work, and may not be called here; write it yourself.")

    before = getattr(module, attribute)
    setattr(module, attribute, refuse)
    try:
        yield
    finally:
        setattr(module, attribute, before)
