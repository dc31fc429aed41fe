"""Save what was drawn, where it should go or where it is safe, and say so."""

import tempfile
from pathlib import Path

from PIL import Image

from minisd import images
from minisd.cli.console import say
from minisd.errors import OutputError
from minisd.interpret.film import Film


def enlarged(picture: Image.Image, scale: int) -> Image.Image:
    """Whole pixels stay whole."""
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.NEAREST)


def save(picture: Image.Image, target: Path, overwrite: bool, settings: dict[str, object]) -> Path:
    """Save; a picture that cannot be written where it should go is kept in the temporary folder."""
    try:
        return images.save(picture, target, overwrite=overwrite, settings=settings)
    except OutputError as error:
        refuge = images.free_name(Path(tempfile.gettempdir()), target.stem)
        images.save(picture, refuge, settings=settings)
        raise OutputError(f"{error} The picture is kept at {refuge}.") from error


def save_film(film: Film, target: Path, overwrite: bool) -> None:
    """As a strip (.png), or an animation (.gif)."""
    if target.suffix.lower() == ".gif":
        film.gif(target, overwrite=overwrite)
    else:
        images.save(film.strip(), target, overwrite=overwrite)
    say(f"{target}  the steps: above x_t, below the predicted x0")
