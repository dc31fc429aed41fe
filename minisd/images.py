"""Images as tensors in [-1, 1], as NumPy arrays in [0, 1] and as PIL images; grids, captions; image files."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minisd._internal import validation
from minisd._internal.image_files import SUFFIXES, check_target, free_name, open_image, save
from minisd.errors import InputError

CAPTION_SIZE = 11  # of the letters below an image, in pixels
RANGES = (1.0, 255.0, 65535.0, 2.0**31)  # what stands for white in arrays, and in images of 8, 16 and 32 bits
Picture = Image.Image | Sequence[Image.Image] | NDArray[np.floating] | Tensor

__all__ = [
    "SUFFIXES",
    "Picture",
    "captioned",
    "check_target",
    "free_name",
    "from_pil",
    "image_grid",
    "numpy_to_pil",
    "open_image",
    "save",
    "size_of",
    "to_map",
    "to_mask",
    "to_numpy",
    "to_pil",
    "to_pixels",
]


def to_numpy(pixels: Tensor) -> NDArray[np.float32]:
    """Pixels (B, 3, H, W) in [-1, 1] -> float32 array (B, H, W, 3) in [0, 1], clamped."""
    return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def numpy_to_pil(array: NDArray[np.floating]) -> list[Image.Image]:
    """Array (B, H, W, 3) or (H, W, 3) in [0, 1], of any float type -> images, rounded to 8 bits.

    Raises InputError for other shapes and for NaN, which would become black.
    """
    batch = array[None] if array.ndim == 3 else array
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3):
        raise InputError(f"an image array is {array.shape}, expected (H, W, 3) or (B, H, W, 3).")
    if not np.isfinite(batch).all():
        raise InputError("an image array holds NaN or infinity, expected numbers in 0..1.")
    rounded = (batch.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in rounded]


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [-1, 1] -> B images."""
    return numpy_to_pil(to_numpy(pixels))


def from_pil(image: Image.Image) -> Tensor:
    """An image of any mode -> pixels (1, 3, H, W) in [-1, 1]; transparency becomes white, see `_grey` for 16 bits.

    Raises InputError for an image that cannot be read, and for NaN.
    """
    image = _loaded(image, "image")
    if _has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        image = Image.fromarray((255 * _grey(image, "image")).round().astype(np.uint8))
    array = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None]


def _loaded(image: Image.Image, name: str) -> Image.Image:
    """The image, decoded; without premultiplied colours, which few operations take. Raises InputError."""
    try:
        image.load()
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image
    except MemoryError:
        raise
    except Exception as error:  # a closed or damaged file: decoders raise many classes
        raise InputError(f"{name} cannot be read ({error}), expected an image that is open and complete.") from error


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _grey(image: Image.Image, name: str) -> NDArray[np.floating]:
    """The brightness (H, W) in [0, 1]; modes of more than 8 bits range to the first of RANGES that holds all values."""
    if image.mode != "F" and image.mode != "I" and not image.mode.startswith("I;"):
        return np.asarray(image.convert("L"), dtype=np.float32) / 255
    array = np.asarray(image).astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity, expected finite numbers.")
    ranges = RANGES if image.mode == "F" else RANGES[1:]
    return (array / _range_of(float(array.max()), ranges)).clip(0, 1)


def _range_of(largest: float, ranges: Sequence[float]) -> float:
    """The number that stands for white, where `largest` is the largest one that occurs."""
    return next((each for each in ranges if largest <= 1.001 * each), largest)


def to_pixels(image: Picture, name: str = "image", size: tuple[int, int] | None = None) -> Tensor:
    """Images of any kind -> pixels (B, 3, H, W) in [-1, 1], float32.

    image: a PIL image, a list of PIL images, a NumPy array (H, W, 3) or (B, H, W, 3) in [0, 1], or a tensor
    (B, 3, H, W) in [-1, 1]. size: (width, height); PIL images are resized to it (Lanczos), others must have it.
    Raises InputError for other shapes and values.
    """
    if isinstance(image, Tensor):
        validation.plain_tensor(image, name)
        pixels = image
    elif isinstance(image, np.ndarray):
        batch = _from_array(image if image.ndim == 4 else image[None], name)
        pixels = 2 * batch.movedim(-1, 1) - 1 if batch.ndim == 4 and image.dtype.kind == "f" else batch
        if image.dtype.kind != "f":
            raise InputError(f"{name} is an array of {image.dtype}, expected floats in [0, 1]; divide 8 bits by 255.")
    else:
        pixels = torch.cat([from_pil(_resized(_loaded(each, name), size)) for each in _listed(image, name)])
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise InputError(
            f"{name} is {pixels.dtype} of shape {tuple(pixels.shape)}, expected a tensor (B, 3, H, W) in [-1, 1], "
            "an array (B, H, W, 3) in [0, 1] or PIL images."
        )
    if not bool((pixels.abs() <= 1.001).all()):  # NaN is not
        raise InputError(f"{name} holds values outside of its range, expected tensors in [-1, 1] and arrays in [0, 1].")
    return _of_size(pixels.float().cpu(), name, size)


def _from_array(array: NDArray[Any], name: str) -> Tensor:
    """An array of numbers of any type, byte order and strides as a float32 tensor."""
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} is an array of {array.dtype}, expected an array of real numbers.")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity, which is refused later
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def size_of(image: Picture, name: str = "image") -> tuple[int, int]:
    """(height, width) of images of any kind; raises InputError as to_pixels does."""
    if isinstance(image, Tensor | np.ndarray):
        height, width = to_pixels(image, name).shape[2:]
        return height, width
    return _listed(image, name)[0].size[::-1]


def to_map(image: Picture, name: str, size: tuple[int, int] | None = None) -> Tensor:
    """A mask or a depth map of any kind -> (B, 1, H, W), float32.

    image: PIL images, whose brightness is scaled to [0, 1], and is 0 where they are transparent; or an array or tensor
    (H, W), (H, W, 1), (B, H, W), (B, H, W, 1) or (B, 1, H, W), whose values stay. An image whose values are 0 and 1
    alone, as those of labels, ranges to 1. size: see to_pixels. Raises InputError for other shapes, NaN and infinity.
    """
    if isinstance(image, Tensor | np.ndarray):
        if isinstance(image, Tensor):
            validation.plain_tensor(image, name)
        values = image if isinstance(image, Tensor) else _from_array(image, name)
        if values.ndim in (3, 4) and values.shape[-1] == 1 and (values.ndim == 3 or values.shape[1] != 1):
            values = values[..., 0]
        values = values[None, None] if values.ndim == 2 else values[:, None] if values.ndim == 3 else values
    else:
        grey = [Image.fromarray(_brightness(_loaded(each, name), name)) for each in _listed(image, name)]
        values = torch.stack([torch.from_numpy(np.array(_resized(each, size)))[None] for each in grey])
    if values.ndim != 4 or values.shape[1] != 1:
        raise InputError(f"{name} has the shape {tuple(values.shape)}, expected (H, W), (B, H, W) or (B, 1, H, W).")
    if not torch.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinity, expected finite numbers.")
    return _of_size(values.float().cpu(), name, size)


def _brightness(image: Image.Image, name: str) -> NDArray[np.floating]:
    """`_grey` times the opacity; an image of 0 and 1 out of 255 alone holds labels, and ranges to 1."""
    grey = _grey(image, name)
    if 0 < grey.max() < 1.5 / 255 and image.mode != "F":
        grey = grey * 255
    if _has_alpha(image):
        grey = grey * (np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float32) / 255)
    return grey


def to_mask(image: Picture, name: str, size: tuple[int, int] | None = None) -> Tensor:
    """A mask of any kind -> (B, 1, H, W) in [0, 1], float32; 1 marks. See to_map; arrays range to 1, 255 or 65535."""
    values = to_map(image, name, size)
    if isinstance(image, Tensor | np.ndarray):
        values = values / _range_of(float(values.max()), RANGES)
    return values.clamp(0, 1)


def _listed(image: Any, name: str) -> list[Image.Image]:
    """One or several PIL images as a list. Raises InputError for anything else and for different sizes."""
    listed = [image] if isinstance(image, Image.Image) else list(image) if isinstance(image, list | tuple) else []
    if not listed or not all(isinstance(each, Image.Image) for each in listed):
        raise InputError(
            f"{name} is {type(image).__name__}, expected a PIL image, a list of them, an array or a tensor."
        )
    if 0 in listed[0].size:
        raise InputError(f"{name} is {listed[0].width} x {listed[0].height}, expected at least one pixel.")
    if len({each.size for each in listed}) > 1:
        raise InputError(f"{name} holds images of {len({each.size for each in listed})} sizes, expected one size.")
    return listed


def _resized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return image if size is None or image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _of_size(values: Tensor, name: str, size: tuple[int, int] | None) -> Tensor:
    if size is not None and tuple(values.shape[2:]) != size[::-1]:
        raise InputError(
            f"{name} is {values.shape[3]} x {values.shape[2]}, expected {size[0]} x {size[1]}; PIL images are resized."
        )
    return values


def image_grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 0) -> Image.Image:
    """Images of one size side by side, row by row; the grid is about square unless `columns` is given."""
    if not images:
        raise InputError("a grid needs at least one image, got none.")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        grid.paste(image, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return grid


def captioned(image: Image.Image, text: str, lines: int | None = None) -> Image.Image:
    """An image with a text below it, in lines of its width: as many as it needs, or `lines`, the rest cut off."""
    font, rows = ImageFont.load_default(CAPTION_SIZE), [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= image.width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    rows = rows[:lines]
    height = image.height + (CAPTION_SIZE + 3) * (len(rows) if lines is None else lines)
    whole = Image.new("RGB", (image.width, height), "white")
    whole.paste(image)
    ImageDraw.Draw(whole).multiline_text((0, image.height), "\n".join(rows), "black", font, spacing=3)
    return whole
