"""Pictures in and out: tensors in [-1, 1], NumPy arrays in [0, 1], PIL images; grids; PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from minisd import writing
from minisd.errors import InputError, OutputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def to_numpy(pixels: Tensor) -> NDArray[np.float32]:
    """Pixels (B, 3, H, W) in [-1, 1] -> float32 array (B, H, W, 3) in [0, 1], clamped."""
    return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def numpy_to_pil(array: NDArray[np.floating]) -> list[Image.Image]:
    """Array (B, H, W, 3) or (H, W, 3) in [0, 1], of any float type -> images, rounded to 8 bits.

    Raises InputError for other shapes and for NaN, which would come out black.
    """
    batch = array[None] if array.ndim == 3 else array
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3):
        raise InputError(f"a picture array is {array.shape}, expected (H, W, 3) or (B, H, W, 3).")
    if not np.isfinite(batch).all():
        raise InputError("a picture array holds NaN or infinity, expected numbers in 0..1.")
    rounded = (batch.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in rounded]


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [-1, 1] -> B images."""
    return numpy_to_pil(to_numpy(pixels))


def from_pil(image: Image.Image) -> Tensor:
    """An image of any mode -> pixels (1, 3, H, W) in [-1, 1]; transparency on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    array = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None]


def image_grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 0) -> Image.Image:
    """Images of one size as one picture, row by row; about square unless `columns` says otherwise."""
    if not images:
        raise InputError("a grid needs at least one image, got none.")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        grid.paste(image, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return grid


def check_target(path: str | Path, overwrite: bool = False) -> Path:
    """A path that a picture may be written to; OutputError, before any work is done, for one that it may not."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path} has the suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}.")
    writing.check_target(path, overwrite)
    return path


def free_name(folder: Path, stem: str, suffix: str = ".png") -> Path:
    """The first of stem.png, stem-2.png, ... that does not exist yet."""
    path, n = folder / f"{stem}{suffix}", 2
    while path.exists() or path.is_symlink():
        path, n = folder / f"{stem}-{n}{suffix}", n + 1
    return path


def save(
    image: Image.Image,
    path: str | Path,
    *,
    overwrite: bool = False,
    settings: Mapping[str, object] | None = None,
    frames: Sequence[Image.Image] = (),
    milliseconds: int = 120,
) -> Path:
    """Write an image whole or not at all; `settings` become text in a PNG, `frames` the rest of a GIF.

    Raises OutputError: see check_target; and when the disk is full, with the old file untouched.
    """
    path = check_target(path, overwrite)
    options: dict[str, object] = {}
    if path.suffix.lower() == ".png" and settings:
        info = PngImagePlugin.PngInfo()
        for key, value in settings.items():
            info.add_itxt(key, str(value))
        options["pnginfo"] = info
    if frames:
        options |= {"save_all": True, "append_images": list(frames), "duration": milliseconds, "loop": 0}
    kind = Image.registered_extensions()[path.suffix.lower()]
    writing.write_atomically(path, lambda file: image.save(file, format=kind, **options), overwrite)
    return path
