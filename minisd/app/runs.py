"""One run at a time for all visitors, because hooks act on networks that they share; a visitor may stop a run."""

import html
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import gradio as gr

from minisd._internal import memory
from minisd._internal.messages import printable
from minisd.errors import MinisdError
from minisd.pipeline import StableDiffusion


class Stopped(Exception):
    """The visitor stopped the run; raised at the next call of the UNet."""


class Runs:
    """The run of the moment, and the visitors who want theirs to stop; a visitor is a session of Gradio."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: str | None = None
        self._stopping: set[str | None] = set()

    def begin(self, request: gr.Request) -> None:
        """The visitor asks for a run: what was stopped before does not matter any more."""
        self._stopping.discard(request.session_hash)

    def stop(self, request: gr.Request) -> None:
        """End the visitor's run at the next call of the UNet; a run that waits ends when its turn comes."""
        self._stopping.add(request.session_hash)

    def leave(self, request: gr.Request) -> None:
        """The visitor closes the page: their run stops, and nothing about them is kept."""
        if self._running == request.session_hash:
            self.stop(request)
        else:
            self.begin(request)

    @contextmanager
    def alone(self, sd: StableDiffusion | None, visitor: str | None, notes: list[str]) -> Iterator[None]:
        """Wait for the run before, then keep all others away; the warnings of the run become notes.

        Raises Stopped where the visitor stops it, and gr.Error, with the sentence of the library's error.
        """
        with self._lock, _explained(notes):
            self._running = visitor
            hook = None if sd is None else sd.unet.register_forward_pre_hook(lambda *_: self._check(visitor))
            try:
                self._check(visitor)
                yield
            finally:
                if hook is not None:
                    hook.remove()
                self._running = None

    def _check(self, visitor: str | None) -> None:
        if visitor in self._stopping:
            self._stopping.discard(visitor)
            raise Stopped


@contextmanager
def _explained(notes: list[str]) -> Iterator[None]:
    """Raise an error of the library as one that Gradio shows, and collect the warnings; only one thread may do this."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with memory.translated("this run"):
                yield
        except MinisdError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None
        finally:
            notes += [each for each in dict.fromkeys(printable(str(w.message)) for w in caught) if each not in notes]
