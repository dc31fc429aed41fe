"""Print lines and save images; the image code is imported only where an image is saved."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import minisd
from minisd._internal.messages import printable
from minisd.errors import OutputError

if TYPE_CHECKING:
    from PIL import Image


class Lines:
    """A standard stream that may be closed, full or a pipe without a reader: no work is lost because of it.

    What cannot be written is dropped. error: why; None while all was written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """stream: None where the stream was closed before the program began; its lines are not missed."""
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text; at the end of a line also to the disk, so that a full one is noticed with the first line."""
        self._try(lambda stream: stream.write(_encodable(text, stream)))
        if text.endswith("\n"):
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what waits in the stream's buffer."""
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self.stream is None or self.error is not None:
            return
        try:
            action(self.stream)
        except OSError as error:
            self.error = error
            with suppress(OSError, ValueError):  # what waits in the buffer, and is written at the end, goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def isatty(self) -> bool:
        """Whether a person reads the stream."""
        return self.stream is not None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def open_closed_descriptors() -> None:
    """Give the numbers of closed standard streams to the null device, so that no file that is written gets them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, by default on standard output; characters that the terminal cannot show are escaped."""
    stream = sys.stdout if stream is None else stream
    print(_encodable(text, stream), file=stream)


def complain(text: str) -> None:
    """Print an error or a note on standard error, in one printable line."""
    if sys.stderr is not None:
        say(printable(text), sys.stderr)


def until_interrupted(action: Callable[[], int]) -> int:
    """What the action returns; 130 where Ctrl-C ended its training, with a line on what is kept."""
    try:
        return action()
    except KeyboardInterrupt as stop:
        if not stop.args:  # it came before or after the training
            raise
        complain(f"minisd: {stop}")
        return 130


def _encodable(text: str, stream: TextIO | None) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def save_image(
    image: "Image.Image",
    path: Path,
    overwrite: bool,
    settings: dict[str, object],
    frames: Sequence["Image.Image"] = (),
) -> Path:
    """Save an image, or an animation; where the path cannot be written, it is kept in the temporary folder.

    frames: of the animation, without the first one.
    """
    try:
        return minisd.images.save(image, path, overwrite=overwrite, settings=settings, frames=frames)
    except OutputError as error:
        import tempfile  # here, because it is slow to import

        kept = minisd.images.free_name(Path(tempfile.gettempdir()), path.stem, path.suffix if frames else ".png")
        minisd.images.save(image, kept, settings=settings, frames=frames)
        raise OutputError(f"{error} The image is kept at {kept}.") from error


def save_film(film: "minisd.Film", path: Path, overwrite: bool) -> None:
    """Save the denoising steps as a strip (.png) or as an animation (.gif)."""
    if path.suffix.lower() == ".gif":
        film.gif(path, overwrite=overwrite)
    else:
        minisd.images.save(film.strip(), path, overwrite=overwrite)
    say(f"{path}  the denoising steps: x_t above, the predicted x0 below")
