"""Checks of arguments, shared by the Python functions and the command line. All raise InputError."""

import math
import operator
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from minisd.errors import InputError

LARGEST_SEED = 2**64 - 1


def whole_number(value: object, name: str, low: int, high: int) -> int:
    """`value` as an int in low..high; InputError otherwise (bools, floats and strings included)."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise InputError(f"{name} is {value!r}, expected a whole number in {low}..{high}.")
    return number


def real_number(value: object, name: str, low: float, high: float) -> float:
    """`value` as a float in low..high; InputError otherwise (bools, NaN and strings included)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}, expected a number in {low:g}..{high:g}.")
    return float(value)  # type: ignore[arg-type]


def guidance(value: object) -> float:
    """A guidance scale in -1000..1000: 1 means no guidance, a negative one guides away from the prompt."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"guidance_scale is {value!r}, expected a finite number; 7.5 is usual, 1 means none.")
    return real_number(value, "guidance_scale", -1000, 1000)


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
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[2] != width or value.numel() == 0:
        raise InputError(f"{name} is {shape}, expected a tensor (prompts, tokens, {width}), as sd.encode_prompt gives.")
    if not value.is_floating_point() or not torch.isfinite(value).all():
        raise InputError(f"{name} holds NaN, infinity or whole numbers ({value.dtype}), expected finite text states.")
    return value


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
    side = whole_number(value, name, 1, 2**20)
    if side < smallest:
        raise InputError(f"{name} is {side}, expected at least {smallest} pixels for this model.")
    if side % multiple:
        below = side - side % multiple
        raise InputError(f"{name} is {side}, expected a multiple of {multiple}: {below} or {below + multiple}.")
    return side


def memory(needed: int, what: str) -> None:
    """InputError if `needed` bytes are more than this machine has; call it before anything is allocated."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not every system reports its memory
        return
    if needed > total:
        raise InputError(
            f"{what} needs about {needed / 2**30:.0f} GiB, this machine has {total / 2**30:.0f} GiB; "
            "choose a smaller size or fewer images at once."
        )
