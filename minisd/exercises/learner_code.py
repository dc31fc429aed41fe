"""Running a learner's code: what goes wrong becomes one sentence with the line of their file."""

import contextlib
import copy
import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd._internal.messages import printable
from minisd.errors import MinisdError

SECONDS = 10.0  # for one call of a learner's function


class Complaint(MinisdError, ValueError):
    """What is wrong with a learner's code, in one sentence."""


class NotWritten(Complaint):
    """The function still raises NotImplementedError."""


class Failed(Complaint):
    """The code raises an error."""


class _TooSlow(BaseException):
    """The time is over; not an Exception, so that a learner's `except Exception` does not catch it."""


class Forbidden(Complaint):
    """The code uses what it may not use."""


def load(path: str, name: str) -> Callable[..., Any]:
    """The function `name` in a file. Raises Complaint."""
    try:
        with open(path, "rb") as file:
            code = file.read()
    except OSError as error:
        raise Complaint(f"{path} cannot be read ({error.strerror}); change its permissions.") from error
    return define(code, path, name)


def define(code: bytes, path: str, name: str) -> Callable[..., Any]:
    """The function `name` in the code of a file; path: its name in messages. Raises Complaint."""
    module = ModuleType(f"learner_{name}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up
    with guarded(path):
        exec(compile(code, path, "exec"), module.__dict__)
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
    given = copy.deepcopy(list(arguments))
    with contextlib.ExitStack() as stack:
        random = stack.enter_context(_settings_restored())
        for name in forbidden:
            stack.enter_context(refused(name))
        stack.enter_context(guarded(file_of(solution)))
        result = solution(*given)
        if not torch.equal(torch.random.get_rng_state(), random):
            raise Complaint("your function draws random numbers; its result must depend on its arguments alone.")
    if not all(_same(before, after) for before, after in zip(arguments, given, strict=True)):
        raise Complaint("your function changes one of its arguments; compute a new one, without += and x[...] =.")
    return result


def file_of(solution: Callable[..., Any]) -> str:
    """The file, or notebook cell, of a function."""
    code = getattr(solution, "__code__", None)
    return "" if code is None else str(code.co_filename)


@contextlib.contextmanager
def guarded(path: str) -> Iterator[None]:
    """Within the block, errors and delays of the code in a file become Complaints. Raises these, NotWritten, Failed."""
    try:
        with _limited(SECONDS):
            yield
    except Complaint:
        raise
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise Complaint(f"{where}{printable(str(error.msg))}.") from error
    except _TooSlow as error:
        raise Complaint(
            f"{_where(path, error)}it takes longer than {SECONDS:g} seconds; does a loop never end?"
        ) from error
    except SystemExit as error:
        raise Complaint(f"{_where(path, error)}it ends the program; remove exit().") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, NotImplementedError) and _files(error)[-1:] == [path]:
            raise NotWritten("nothing is written yet: the function raises NotImplementedError.") from error
        text = printable(str(error)).split("\n")[0][:300]
        raise Failed(f"{_where(path, error)}{type(error).__name__}{f': {text}' if text else ''}.") from error


def _files(error: BaseException) -> list[str]:
    """The files that an error passed through, the innermost last."""
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]


def _where(path: str, error: BaseException) -> str:
    """The line of the learner's file in which an error was raised; empty if it was not there."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    return f"line {lines[-1]}: " if lines else ""


def _same(before: Any, after: Any) -> bool:
    """Whether an argument is as it was."""
    if isinstance(before, nn.Module):
        return _same(before.state_dict(), after.state_dict())
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and before.shape == after.shape and torch.equal(before, after)
    if isinstance(before, Mapping):
        return before.keys() == after.keys() and all(_same(value, after[key]) for key, value in before.items())
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    return callable(before) or bool(before == after)


@contextlib.contextmanager
def _settings_restored() -> Iterator[Tensor]:
    """After the block PyTorch has the random numbers, default dtype and gradient mode of before; gives the first."""
    random, dtype, grad = torch.random.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield random
    finally:
        torch.random.set_rng_state(random)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _TooSlow after some seconds, and again, where the system can: in the main thread, not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """Within the block, calling a function of PyTorch, or a method of a class, raises Forbidden."""
    owner, attribute = _found(name)
    original = getattr(owner, attribute)

    def refuse(*arguments: object, **options: object) -> None:
        raise Forbidden(f"{attribute} does the whole work, and may not be called here; write it yourself.")

    class Refusing(TorchFunctionMode):
        """Also where the function has another name."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return refuse() if func is original else func(*args, **(kwargs or {}))

    setattr(owner, attribute, refuse)
    try:
        with Refusing():
            yield
    finally:
        setattr(owner, attribute, original)


def _found(name: str) -> tuple[Any, str]:
    """The module or class that has a function with this dotted name, and the last part of the name."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(module), attribute
    except ModuleNotFoundError:
        owner, _, inner = module.rpartition(".")
        return getattr(importlib.import_module(owner), inner), attribute
