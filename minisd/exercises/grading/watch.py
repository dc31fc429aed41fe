"""What a learner's code may not do while it runs: read the answers or foreign files, start processes, send signals.

An audit hook raises an error in the learner's line. Reading the library's answers is also remembered, because no other
code has a reason for it; the rest counts only where it is not caught, for libraries try such things and go on without.
"""

import os
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from minisd.exercises.learner_code import Forbidden

PACKAGE = Path(__file__).resolve().parents[1]
ANSWERS = tuple(str(PACKAGE / name) + os.sep for name in ("tasks", "graded"))
LIBRARIES = [place for place in sys.path if os.path.basename(place) in ("site-packages", "dist-packages")]
READABLE = tuple(  # Python's own folders and the system's; not the instructor's, nor those of other learners
    os.path.join(os.path.realpath(str(place)), "")
    for place in (
        *LIBRARIES, sys.prefix, sys.base_prefix, PACKAGE.parent, PACKAGE.parents[1] / "weights_loader",
        "/usr", "/lib", "/etc", "/dev", "/proc", "/sys", "/System", "/Library", os.environ.get("SYSTEMROOT", "/usr"),
    )
)  # fmt: skip
PROCESSES = re.compile(r"/proc/(?!self\b)\d+/")
REFUSED = {
    "os.fork": "starts a process", "os.forkpty": "starts a process", "os.posix_spawn": "starts a process",
    "os.spawn": "starts a process", "os.system": "starts a process", "subprocess.Popen": "starts a process",
    "os.exec": "starts another program", "os.startfile": "starts another program",
    "os.kill": "sends a signal to a process", "os.killpg": "sends a signal to a process",
    "socket.connect": "uses the network", "socket.getaddrinfo": "uses the network",
}  # fmt: skip
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.link",
           "os.symlink", "shutil.rmtree", "shutil.move"}  # fmt: skip


class NotAllowed(Forbidden, PermissionError):
    """What the code tries to do is not allowed; to a library that tries it, an error of the system."""


class Watch:
    """The audit hook of a process that runs a learner's file; it cannot be removed. found: attempts to read answers."""

    def __init__(self, path: str, folder: str) -> None:
        """path: the learner's file, as in its code objects. folder: where files may be written."""
        self.path, self.folder = path, os.path.realpath(folder) + os.sep
        self.found: list[str] = []

    def start(self) -> None:
        """From now on, until the process ends."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._open(*arguments)
        elif event == "import" and str(arguments[0]).startswith("minisd.exercises."):
            self._refuse(f"imports {arguments[0]}, which leads to the answers", remember=True)
        elif event in REFUSED:
            self._refuse(REFUSED[event])
        elif event in CHANGES and not self._is_inside(arguments[0]):
            self._refuse(f"changes files ({event})")

    def _open(self, path: Any, mode: str | None, flags: int) -> None:
        if not isinstance(path, str | bytes):
            return
        real = os.path.realpath(os.fsdecode(path))
        if real.startswith(ANSWERS):
            shown = Path(real).relative_to(PACKAGE.parents[1]).as_posix()
            self._refuse(f"opens {shown}, which has the answers", remember=True)
        if PROCESSES.match(real) and not real.startswith(f"/proc/{os.getpid()}/"):
            self._refuse("looks into another process")
        if real.startswith(self.folder) or real == os.path.realpath(os.devnull):
            return
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            self._refuse(f"writes {os.path.basename(real)!r} outside of its folder")
        if not real.startswith(READABLE):
            self._refuse(f"opens {os.path.basename(real)!r}, which is none of Python's files")

    def _is_inside(self, path: Any) -> bool:
        return isinstance(path, str | bytes) and os.path.realpath(os.fsdecode(path)).startswith(self.folder)

    def _refuse(self, what: str, remember: bool = False) -> None:
        text = f"{self._line()}it {what}; a submission may not."
        if remember:
            self.found.append(text)
        raise NotAllowed(text)

    def _line(self) -> str:
        """The line of the learner's file that runs now."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename == self.path:
                return f"line {frame.f_lineno}: "
            frame = frame.f_back
        return ""
