"""The process of one submission: runs a learner's functions on the grader's inputs, and sends back what they return.

python -m minisd.exercises.grading.runner fork|once

It reads requests from standard input and writes answers to standard output. With `fork` each request is served by a
fork of its own, which this process watches and ends; it never runs a learner's code itself. `once` is for systems
where a fork of PyTorch is not safe: it serves one request and ends.
"""

import contextlib
import os
import pickle
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import torch

import minisd.exercises
import minisd.models.unet  # as the inputs need it; before the fork, so that it is imported once
from minisd.exercises import learner_code
from minisd.exercises.grading import limits, wire
from minisd.exercises.grading.frames import LONGEST, read_frame, write_frame
from minisd.exercises.grading.source_check import FOR_LEARNERS, imports_of_answers
from minisd.exercises.grading.watch import Watch
from minisd.exercises.learner_code import Complaint, Forbidden, NotWritten

READY, ANSWERED, ENDED = b"ready", b"answered", b"ended"
TOO_SLOW = "it takes too long; does a loop never end?"
Solution = Callable[..., Any]
KINDS = {NotWritten: "to do", Forbidden: "refused", Complaint: "failing"}  # of complaints, the first that fits


class Request(NamedTuple):
    """An exercise to run. path: the learner's file in messages. arguments: of each case, pickled by the grader."""

    name: str
    path: str
    code: bytes
    arguments: bytes
    forbidden: tuple[str, ...]
    seconds: float
    memory: int


def main(mode: str) -> None:
    """Serve requests until standard input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    torch.set_num_threads(1)
    for name in FOR_LEARNERS:  # a file may check itself at its end, which tells the grader nothing
        setattr(minisd.exercises, name, lambda *arguments, **options: None)
    write_frame(answers, READY)
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    while (data := read_frame(requests)) is not None:
        request = Request(*pickle.loads(data))
        if mode == "fork":
            write_frame(answers, served_by_fork(request, requests, answers))
        else:
            write_frame(answers, ANSWERED + served(request))
            os._exit(0)


def served_by_fork(request: Request, *grader: IO[bytes]) -> bytes:
    """The answer of a fork, or how it ended. grader: the streams that the fork must not have."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setsid()
            limits.end_with_parent()
            for number in (*(stream.fileno() for stream in grader), reading):
                os.close(number)
            with os.fdopen(writing, "wb") as answer:
                answer.write(served(request))
            os._exit(0)
        os._exit(1)
    os.close(writing)
    try:
        data, end = _watched(pid, reading, time.monotonic() + request.seconds + limits.GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # also what it has started
        os.close(reading)
    if end is None and data:
        return ANSWERED + data
    return ENDED + (end or "it ended its process before it answered").encode()


def _watched(pid: int, reading: int, deadline: float) -> tuple[bytes, str | None]:
    """What a fork writes until it ends, and a sentence if its end is not a good one."""
    data, is_open = bytearray(), True
    while True:
        if is_open and select.select([reading], [], [], 0.01)[0]:
            chunk = os.read(reading, 2**16)
            is_open = bool(chunk)
            data += chunk
        done, status = os.waitpid(pid, os.WNOHANG)
        if done and status == 0:
            while is_open and select.select([reading], [], [], 0)[0] and len(data) <= LONGEST:
                chunk = os.read(reading, 2**16)
                is_open = bool(chunk)
                data += chunk
        if done:
            return bytes(data), how_it_ended(os.waitstatus_to_exitcode(status))
        if len(data) > LONGEST or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            too_long = f"it returns more than {LONGEST // limits.MIB} MiB"
            return b"", too_long if len(data) > LONGEST else TOO_SLOW
        if not is_open:
            time.sleep(0.002)


def how_it_ended(code: int) -> str | None:
    """A sentence about an exit code, negative for a signal; None for 0."""
    if code >= 0:
        return f"it ended its process with the exit code {code}" if code else None
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return TOO_SLOW if name == "SIGXCPU" else f"its process was ended by {name}"


def served(request: Request) -> bytes:
    """The results of all cases as a message, [kind, result or complaint] for each; fewer where the time is over."""
    folder = os.path.realpath(tempfile.mkdtemp(dir=os.getcwd()))
    os.chdir(folder)
    tempfile.tempdir = folder
    writer = wire.Writer()
    results = _results(request, Watch(request.path, folder), writer)
    return writer.message({"list": [{"list": [kind, plain]} for kind, plain in results]})


def _results(request: Request, watch: Watch, writer: wire.Writer) -> list[tuple[str, Any]]:
    cases = pickle.loads(request.arguments)
    found = imports_of_answers(request.code, request.path)
    if found:
        return [("refused", found)]
    learner_code.SECONDS = request.seconds
    with contextlib.ExitStack() as stack:
        for name in request.forbidden:  # before the file's imports, which would keep the function itself
            stack.enter_context(learner_code.refused(name))
        limits.limit(request.seconds, request.memory)
        watch.start()
        begin = time.monotonic()
        results: list[tuple[str, Any]] = []
        try:
            solution = learner_code.define(request.code, request.path, request.name)
        except Complaint as error:
            return _refused_first(watch, [_complaint(error)])
        for arguments in cases:
            results.append(_result(solution, arguments, writer))
            if time.monotonic() > begin + request.seconds:
                break
    return _refused_first(watch, results)


def _result(solution: Solution, arguments: tuple[Any, ...], writer: wire.Writer) -> tuple[str, Any]:
    try:
        returned = learner_code.call(solution, arguments)
    except Complaint as error:
        return _complaint(error)
    try:
        return "value", writer.plain(returned)
    except Exception as error:  # it is larger than memory, or contains itself, or fails when it is read
        return "failing", f"its result cannot be read ({type(error).__name__})."


def _refused_first(watch: Watch, results: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [("refused", watch.found[0])] if watch.found else results


def _complaint(error: Complaint) -> tuple[str, str]:
    return next(kind for of, kind in KINDS.items() if isinstance(error, of)), str(error)


if __name__ == "__main__":
    main(sys.argv[1])
