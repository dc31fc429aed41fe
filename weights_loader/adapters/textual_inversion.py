"""Textual-inversion embeddings: a file with the vectors of a new word.

The formats: diffusers `{"<word>": (width,) or (n, width)}`; A1111 `.pt` with `string_to_param.*` and `.safetensors`
with `emb_params`; SDXL `clip_l` and `clip_g`; cloneofsimo's `<s1>`, `<s2>` beside a LoRA. A file that does not say the
word is known by its own name, as in the programs that write such files.
"""

import re
import warnings
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minisd.adapters import add_embeddings
from minisd.errors import InputError, MismatchError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import TextPart
from weights_loader import detect
from weights_loader.formats.weight_file import WeightFile, open_weights

NAMELESS = ({"emb_params"}, {"clip_l", "clip_g"}, {"clip_l"}, {"clip_g"})
FAMILIES = {(768,): "SD 1.x", (1024,): "SD 2.x", (768, 1280): "SDXL", (1280,): "the SDXL refiner"}


def load_embedding(sd: StableDiffusion, path: str | Path, token: str | None = None) -> list[str]:
    """Add the word of a textual-inversion file to a pipeline: rows of its text encoders, ids of its tokenizers.

    path: a .bin, .pt or .safetensors file. token: what to write in prompts; by default what the file says, else the
    file's name without suffix. Returns the words that prompts may now use: one, but for files that hold several.

    Raises InputError (the word exists, or is blank), MismatchError (no embedding, or one of another family),
    NumericalError (NaN), and what reading files raises; nothing is changed then.
    """
    file = open_weights(Path(path).expanduser())
    words = _read(file)
    if token is not None:
        if len(words) > 1:
            raise InputError(f"{path} holds {', '.join(words)}, which one token cannot name; leave the token out.")
        words = {token: next(iter(words.values()))}
    parts = sd.text_parts
    add_embeddings({word: _place(vectors, parts, file.path) for word, vectors in words.items()})
    if sd.defaults.words:  # all that it was taught, so far
        sd.defaults = replace(sd.defaults, words=" ".join([sd.defaults.words, *words]))
    return list(words)


def _read(file: WeightFile) -> dict[str, list[Tensor]]:
    """The vectors (n, width) of each word of a file, one tensor a text encoder."""
    names, stem = sorted(file.shapes), file.path.stem
    if set(names) in NAMELESS or (len(names) == 1 and names[0].startswith("string_to_param.")):
        words = {stem: names}
    elif len(names) == 1:
        words = {names[0]: names}
    elif quoted := [name for name in names if re.fullmatch("<.+>", name)]:
        words = {name: [name] for name in quoted}
        if len(quoted) < len(names):
            warnings.warn(f"{file.path.name} also holds a LoRA, which load_lora (--lora) loads.", stacklevel=3)
    else:
        what = detect.stranger(file.shapes)
        raise MismatchError(
            f"{file.path} is {what[0] if what else 'no embedding'} ({len(names)} tensors: {', '.join(names[:3])}), "
            f"expected a textual-inversion embedding; {what[1] if what else 'see what it is with `minisd inspect`'}."
        )
    for name in (name for keys in words.values() for name in keys):
        if len(file.shapes[name]) not in (1, 2):
            raise MismatchError(
                f"{file.path}: {name} has shape {file.shapes[name]}, expected vectors, (n, width); it is no embedding."
            )
    return {word: [file.tensor(key).reshape(-1, file.shapes[key][-1]) for key in keys] for word, keys in words.items()}


def _place(vectors: list[Tensor], parts: list[TextPart], path: Path) -> list[tuple[TextPart, Tensor]]:
    """Each text encoder with the vectors of its width."""
    widths = tuple(sorted(each.shape[1] for each in vectors))
    expected = tuple(sorted(part.encoder.config.width for part in parts))
    if widths != expected:
        made_for, is_for = (FAMILIES.get(each, "another family") for each in (widths, expected))
        raise MismatchError(
            f"{path} has vectors of {_listed(widths)} ({made_for}), the model has text encoders of "
            f"{_listed(expected)} ({is_for}); use an embedding that was made for this family."
        )
    by_width = {each.shape[1]: each for each in vectors}
    if len({len(each) for each in vectors}) > 1:
        raise MismatchError(
            f"{path} has {' and '.join(str(len(v)) for v in vectors)} vectors, expected as many of each."
        )
    return [(part, by_width[part.encoder.config.width]) for part in parts]


def _listed(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))
