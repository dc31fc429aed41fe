"""Ctrl-C while packages are imported. This file imports almost nothing, because it is in force only afterwards."""

import os
import signal

INTERRUPTED = "minisd: interrupted; files that were saved are complete"


class EndAtOnce:
    """`with EndAtOnce():` ends the process at Ctrl-C with code 130 and one line, for code that only imports.

    Without it, packages written in C turn the interruption into errors of their own. Without effect in other threads
    than the main one, and where the process ignores Ctrl-C.
    """

    def __enter__(self) -> None:
        self.before = signal.getsignal(signal.SIGINT)
        if self.before is not signal.SIG_IGN:
            self._set(_end)

    def __exit__(self, *_: object) -> None:
        self._set(self.before)

    def _set(self, handler: object) -> None:
        try:
            signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
        except (ValueError, TypeError):  # in another thread; or a handler of another language
            return


def _end(*_: object) -> None:
    try:
        os.write(2, f"{INTERRUPTED}\n".encode())
    except OSError:  # standard error is closed
        os._exit(130)
    os._exit(130)
