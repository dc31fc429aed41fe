"""A least speed for downloads: the client's own timeouts notice silence only, not a server of one byte a second."""

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import get_session

LEAST_SPEED = 1000  # bytes a second
WINDOW = 30.0  # seconds over which the speed is measured


class TooSlow(ConnectionError):
    """A server sent fewer bytes than LEAST_SPEED in a whole WINDOW."""


@contextmanager
def least_speed() -> Iterator[None]:
    """Raise TooSlow from the client's requests inside, where a server is too slow."""
    hooks = get_session().event_hooks["response"]
    hooks.append(_watch)
    try:
        yield
    finally:
        hooks.remove(_watch)


def _watch(response: Any) -> None:
    """Measure the body of a response while it is read."""
    library = importlib.import_module(type(response).__module__.partition(".")[0])  # httpx, under the client's name
    body = response.stream

    class Watched(library.SyncByteStream):  # type: ignore[name-defined]
        def __iter__(self) -> Iterator[bytes]:
            began, received = time.monotonic(), 0
            for chunk in body:
                received += len(chunk)
                seconds = time.monotonic() - began
                if seconds >= WINDOW:
                    if received < LEAST_SPEED * seconds:
                        raise TooSlow(f"{received} bytes in {seconds:.0f} s")
                    began, received = time.monotonic(), 0
                yield chunk

        def close(self) -> None:
            body.close()

    response.stream = Watched()
