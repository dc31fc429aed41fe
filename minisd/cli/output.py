"""Print lines and save images; the image code is imported only where an image is saved."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import minisd
from minisd.errors import OutputError

if TYPE_CHECKING:
    from PIL import Image


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, by default on standard output; characters that the terminal cannot show are escaped."""
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def complain(text: str) -> None:
    """Print an error or a note on standard error, in one line."""
    say(" ".join(text.split()), sys.stderr)


def save_image(image: "Image.Image", path: Path, overwrite: bool, settings: dict[str, object]) -> Path:
    """Save an image; where the path cannot be written, the image is kept in the temporary folder."""
    try:
        return minisd.images.save(image, path, overwrite=overwrite, settings=settings)
    except OutputError as error:
        kept = minisd.images.free_name(Path(tempfile.gettempdir()), path.stem)
        minisd.images.save(image, kept, settings=settings)
        raise OutputError(f"{error} The image is kept at {kept}.") from error


def save_film(film: "minisd.Film", path: Path, overwrite: bool) -> None:
    """Save the denoising steps as a strip (.png) or as an animation (.gif)."""
    if path.suffix.lower() == ".gif":
        film.gif(path, overwrite=overwrite)
    else:
        minisd.images.save(film.strip(), path, overwrite=overwrite)
    say(f"{path}  the denoising steps: x_t above, the predicted x0 below")
