"""Checks of arguments, shared by the Python functions and the command line. All raise InputError."""

import math
import numbers
import operator
import re
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from minisd._internal.messages import shown
from minisd.errors import InputError

LARGEST_SEED = 2**64 - 1


def whole_number(value: object, name: str, low: int, high: int) -> int:
    """`value` as an int in low..high, also from NumPy and torch; InputError for bools, floats, strings and others."""
    plain = _plain(value)
    try:
        number = low - 1 if isinstance(plain, bool) else operator.index(plain)  # type: ignore[arg-type]
    except Exception:  # no whole number, or a class whose __index__ fails
        number = low - 1
    if not low <= number <= high:
        raise InputError(f"{name} is {shown(plain)}, expected a whole number in {low}..{high}.")
    return number


def real_number(value: object, name: str, low: float, high: float) -> float:
    """`value` as a float in low..high, also from NumPy and torch; InputError for bools, NaN, strings and others."""
    plain = _plain(value)
    number = math.nan
    if isinstance(plain, numbers.Real) and not isinstance(plain, bool):
        with suppress(OverflowError):  # a whole number beyond all floats
            number = float(plain)
    if not low <= number <= high:
        raise InputError(f"{name} is {shown(plain)}, expected a number in {low:g}..{high:g}.")
    return number


def _plain(value: object) -> object:
    """A single number of NumPy or torch as Python's; anything else as it is."""
    if getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()  # type: ignore[attr-defined]
    except Exception:  # a tensor without data
        return value


def guidance(value: object) -> float:
    """A guidance scale in -1000..1000: 1 means no guidance, a negative one guides away from the prompt."""
    plain = _plain(value)
    if isinstance(plain, float) and not math.isfinite(plain):
        raise InputError(f"guidance_scale is {plain!r}, expected a finite number; 7.5 is usual, 1 means none.")
    return real_number(plain, "guidance_scale", -1000, 1000)


def seed(value: object) -> int:
    """A seed in 0..2**64 - 1; torch would read a negative seed as a large one."""
    return whole_number(value, "seed", 0, LARGEST_SEED)


def text(value: object, name: str) -> str:
    """`value` as a str without lone surrogates, which can be neither tokenized nor printed."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {type(value).__name__}, expected text (str).")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair, {value[error.start]!r}, at position {error.start}"
        raise InputError(f"{name} holds {half}, expected whole characters; remove it.") from None
    return value


def prompts(value: object, name: str = "prompt") -> list[str]:
    """One text or a list of texts, as a list."""
    if isinstance(value, str):
        return [text(value, name)]
    if isinstance(value, Sequence) and not isinstance(value, bytes) and len(value) > 0:
        return [text(each, f"{name} {i}") for i, each in enumerate(value)]
    shown = "an empty list" if isinstance(value, list | tuple) else type(value).__name__
    raise InputError(f"{name} is {shown}, expected a text or a list of texts; write '' for none.")


def text_states(value: object, name: str, width: int) -> Tensor:
    """Text states (B, L, width) as a text encoder returns them; InputError for another shape, NaN and infinity."""
    if isinstance(value, Tensor):
        plain_tensor(value, name)
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[2] != width or value.numel() == 0:
        raise InputError(f"{name} is {shape}, expected a tensor (prompts, tokens, {width}), as sd.encode_prompt gives.")
    if not value.is_floating_point() or not torch.isfinite(value).all():
        raise InputError(f"{name} holds NaN, infinity or whole numbers ({value.dtype}), expected finite text states.")
    return value


def plain_tensor(value: Tensor, name: str) -> None:
    """InputError for a tensor whose numbers cannot be read like an array: sparse, quantized, complex, without data."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized or value.is_complex():
        kind = "without data (meta)" if value.is_meta else f"{value.dtype}, {value.layout}"
        raise InputError(f"{name} is a tensor {kind}, expected a dense one of real numbers.")


def broadcast_rows(values: Tensor | None, name: str, kind: str, count: int, per_prompt: int) -> Tensor | None:
    """Repeat the rows to one for each of `count` images, from 1 row, one for each prompt, or `count` rows.

    kind: the name of the rows in the message. per_prompt: the number of images of each prompt.
    """
    if values is None:
        return None
    if len(values) not in (1, count // per_prompt, count):
        raise InputError(f"{name} holds {len(values)} {kind} for {count}; give one, or one for each prompt.")
    return values.repeat_interleave(count // len(values), 0)


def unknown_words(prompts: Sequence[str], known: str) -> list[str]:
    """The words of the prompts, each once, that the text `known` does not contain; none if `known` has no words."""
    vocabulary = set(re.findall(r"\w+", known.lower()))
    words = dict.fromkeys(word for prompt in prompts for word in re.findall(r"\w+", prompt.lower()))
    return [word for word in words if word not in vocabulary] if vocabulary else []


def size(value: object, name: str, multiple: int, smallest: int) -> int:
    """The height or width of an image in pixels: a multiple of the autoencoder's factor, at least `smallest`."""
    side = whole_number(value, name, 1, 1_000_000)
    if side < smallest:
        raise InputError(f"{name} is {side}, expected at least {smallest} pixels for this model.")
    if side % multiple:
        below = side - side % multiple
        raise InputError(f"{name} is {side}, expected a multiple of {multiple}: {below} or {below + multiple}.")
    return side
