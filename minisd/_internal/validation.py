"""What a generation may be asked for: one validator for the Python functions and the command line."""

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
    """Guidance scale: any finite number up to a thousand; 1 is no guidance, below 0 is away from the prompt."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"guidance_scale is {value!r}, expected a finite number; 7.5 is usual, 1 means none.")
    return real_number(value, "guidance_scale", -1000, 1000)


def seed(value: object) -> int:
    """A seed in 0..2**64 - 1; a negative one would be another name for a large one."""
    return whole_number(value, "seed", 0, LARGEST_SEED)


def text(value: object, name: str) -> str:
    """Text of whole characters, as it is: half of a surrogate pair is in no vocabulary, nor can it be printed."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {type(value).__name__}, expected text (str).")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair, {value[error.start]!r}, at position {error.start}"
        raise InputError(f"{name} holds {half}, where whole characters were expected; remove it.") from None
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
    """What a text encoder gives, (B, L, width), as it is; InputError for another shape, NaN and infinity."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[2] != width or value.numel() == 0:
        raise InputError(f"{name} is {shape}, expected a tensor (prompts, tokens, {width}), as sd.encode_prompt gives.")
    if not value.is_floating_point() or not torch.isfinite(value).all():
        raise InputError(f"{name} holds NaN, infinity or whole numbers ({value.dtype}), expected finite text states.")
    return value


def one_each(values: Tensor | None, name: str, kind: str, count: int, per_prompt: int) -> Tensor | None:
    """A row for each of `count` pictures, of which `per_prompt` belong to a prompt: from one, one a prompt, or as many.

    kind: what the rows are called. Raises InputError.
    """
    if values is None:
        return None
    if len(values) not in (1, count // per_prompt, count):
        raise InputError(f"{name} holds {len(values)} {kind} for {count}; give one, or one for each prompt.")
    return values.repeat_interleave(count // len(values), 0)


def foreign_words(prompts: Sequence[str], known: str) -> list[str]:
    """The words of the prompts, each once, that are not among the known ones; none where no words are listed."""
    vocabulary = set(re.findall(r"\w+", known.lower()))
    words = dict.fromkeys(word for prompt in prompts for word in re.findall(r"\w+", prompt.lower()))
    return [word for word in words if word not in vocabulary] if vocabulary else []


def size(value: object, name: str, multiple: int, smallest: int) -> int:
    """A side of the picture in pixels: a multiple of the autoencoder's factor, not below the smallest."""
    side = whole_number(value, name, 1, 2**20)
    if side < smallest:
        raise InputError(f"{name} is {side}, expected at least {smallest} pixels for this model.")
    if side % multiple:
        below = side - side % multiple
        raise InputError(f"{name} is {side}, expected a multiple of {multiple}: {below} or {below + multiple}.")
    return side


def memory(needed: int, what: str) -> None:
    """InputError when `needed` bytes are more than this machine has; checked before anything is allocated."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return
    if needed > total:
        raise InputError(
            f"{what} needs about {needed / 2**30:.0f} GiB, this machine has {total / 2**30:.0f} GiB; "
            "ask for a smaller size or fewer pictures at once."
        )
