"""The grader's side of a submission's process: starts it, asks it, and ends it when its time is over."""

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import minisd
from minisd.errors import MinisdError
from minisd.exercises.grading.frames import LONGEST, read_frame, write_frame
from minisd.exercises.grading.limits import GRACE
from minisd.exercises.grading.runner import ANSWERED, ENDED, READY, TOO_SLOW, Request, how_it_ended

FORKS = sys.platform.startswith("linux")  # elsewhere libraries of the system may not survive a fork
START = 600.0  # seconds for the import of PyTorch, also on a busy machine
KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH")  # of the environment


class Ended(Exception):
    """The process ended, or was ended, before it answered; the message is a sentence for the learner."""


class SubmissionProcess:
    """`with SubmissionProcess() as process:` the process of one submission; after its end it is started anew."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="minisd-grade-"))
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, request: Request) -> bytes:
        """The message with the results of one exercise. Raises Ended, and MinisdError where no process starts."""
        process = self.process or self._start()
        answer = None
        with _killed_after(process, request.seconds + 2 * GRACE) as is_over, contextlib.suppress(OSError):
            write_frame(process.stdin, pickle.dumps(tuple(request)))
            answer = read_frame(process.stdout, LONGEST + len(ANSWERED))
        if answer is not None and answer.startswith(ANSWERED):
            if not FORKS:
                self._end()
            return answer.removeprefix(ANSWERED)
        if answer is not None and answer.startswith(ENDED):
            raise Ended(answer.removeprefix(ENDED).decode(errors="replace"))
        code = self._end(patience=1.0)
        raise Ended(TOO_SLOW if is_over() else how_it_ended(code) or "it ended its process before it answered")

    def _start(self) -> subprocess.Popen[bytes]:
        mode = "fork" if FORKS else "once"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "minisd.exercises.grading.runner", mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self._environment(),
            start_new_session=True,
        )
        with _killed_after(process, START):
            ready = read_frame(process.stdout, len(READY))
        if ready != READY:
            _kill(process)
            assert process.stderr is not None
            text = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise MinisdError(f"the process for a submission does not start ({text[-1] if text else 'no message'}).")
        self.process = process
        return process

    def _environment(self) -> dict[str, str]:
        """What PyTorch needs, and nothing that tells of the grader, such as where its files are."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        place = str(self.folder)
        return kept | {
            "HOME": place,
            "TMPDIR": place,
            "TEMP": place,
            "USERPROFILE": place,
            "USER": "learner",
            "USERNAME": "learner",
            "PYTHONPATH": str(Path(minisd.__file__).resolve().parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MPLBACKEND": "Agg",
        }

    def _end(self, patience: float = 0.0) -> int:
        """End the process and all of its group; gives its exit code, or that of its killing after some seconds."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
        _kill(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # what waits in the buffer has no reader
                    stream.close()
        return process.returncode


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[Callable[[], bool]]:
    """After some seconds within the block the process is killed; gives a function that says whether it was."""
    is_over = threading.Event()

    def stop() -> None:
        is_over.set()
        _kill(process)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        yield is_over.is_set
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
