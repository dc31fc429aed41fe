"""Load textual-inversion embeddings: files with the vectors of a new word.

The formats: diffusers `{"<word>": (width,) or (n, width)}`; A1111 `.pt` with `string_to_param.*` and `.safetensors`
with `emb_params`; SDXL `clip_l` and `clip_g`, or `text_encoders_0` and `text_encoders_1`; a tensor alone; words beside
a LoRA, `<s1>` and `bundle_emb.word.emb_params`. If a file does not name the word, its own name is used, as in the
programs that write such files.
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minisd._internal.messages import listed
from minisd.adapters import add_embeddings
from minisd.errors import InputError, MismatchError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import TokenizerAndEncoder
from weights_loader.adapters.lora_file import bundled_words
from weights_loader.detect import FAMILIES, foreign_format
from weights_loader.formats.contents import ONLY_TENSOR
from weights_loader.formats.weight_file import WeightFile, computable, open_weights

WITHOUT_WORD = (
    {"emb_params"},
    {"clip_l", "clip_g"},
    {"clip_l"},
    {"clip_g"},
    {"text_encoders_0", "text_encoders_1"},
    {"text_encoders_0"},
    {ONLY_TENSOR},
)
A1111_WORD, A1111_ID = "string_to_param.", "string_to_token."


def load_embedding(sd: StableDiffusion, path: str | Path, token: str | None = None) -> list[str]:
    """Add the word of a textual-inversion file to a pipeline: rows of its text encoders, ids of its tokenizers.

    path: a .bin, .pt or .safetensors file. token: the word for prompts; None uses the word in the file, or else the
    name of the file without suffix. Returns the words that prompts may now use, which are several for some files.

    Raises InputError (the word exists, or is blank), MismatchError (no embedding, or one of another family),
    NumericalError (NaN), and what reading files raises; the pipeline is unchanged then.
    """
    file = open_weights(os.path.expanduser(path))
    names = [name for name in file.shapes if not name.startswith(A1111_ID)]
    keys = _tensors_of_words(file, sorted(names))
    if sum(map(len, keys.values())) < len(names):
        warnings.warn(f"{file.path.name} also holds a LoRA; load_lora (--lora) loads it.", stacklevel=2)
    words = {word: _vectors(file, names) for word, names in keys.items()}
    if token is not None:
        if len(words) > 1:
            raise InputError(f"{path} holds {', '.join(words)}, but token names one word; leave the token out.")
        words = {token: next(iter(words.values()))}
    parts = sd.text_parts
    add_embeddings({word: _match_encoders(vectors, parts, file.path) for word, vectors in words.items()})
    if sd.defaults.words:  # the words that the model knows
        sd.defaults = replace(sd.defaults, words=" ".join([sd.defaults.words, *words]))
    return list(words)


def _tensors_of_words(file: WeightFile, names: list[str]) -> dict[str, list[str]]:
    """The names of each word's tensors, one for each text encoder. Raises MismatchError for other files."""
    if set(names) in WITHOUT_WORD:
        return {file.path.stem: names}
    if all(name.startswith(A1111_WORD) for name in names):
        words = {name: name.removeprefix(A1111_WORD) for name in names}
        return {file.path.stem if word == "*" else word: [name] for name, word in words.items()}
    if len(names) == 1:
        return {names[0]: names}
    if words_of_lora := bundled_words(names):
        return words_of_lora
    what, advice = foreign_format(file.shapes) or ("in no known format", "see its format with `minisd inspect`")
    if "embedding" in what:
        what, advice = "an embedding in an unknown format", "save it as {word: vectors}"
    raise MismatchError(
        f"{file.path} is {what} ({len(names)} tensors: {listed(names, 3)}), expected a textual-inversion "
        f"embedding; {advice}."
    )


def _vectors(file: WeightFile, names: list[str]) -> list[Tensor]:
    """The vectors (n, width) of a word, for each text encoder."""
    for name in names:
        if len(file.shapes[name]) not in (1, 2):
            raise MismatchError(
                f"{file.path}: {name} has shape {file.shapes[name]}, expected vectors (n, width) of an embedding."
            )
    return [computable(file.tensor(name)).reshape(-1, file.shapes[name][-1]) for name in names]


def _match_encoders(
    vectors: list[Tensor], parts: list[TokenizerAndEncoder], path: Path
) -> list[tuple[TokenizerAndEncoder, Tensor]]:
    """Each text encoder with the vectors of its width."""
    widths = sorted(each.shape[1] for each in vectors)
    expected = sorted(part.encoder.config.width for part in parts)
    if widths != expected:
        made_for, family = (FAMILIES.get(sum(each), "another family") for each in (widths, expected))
        raise MismatchError(
            f"{path} has vectors of {_joined(widths)} ({made_for}), the model has text encoders of "
            f"{_joined(expected)} ({family}); use an embedding that was made for this family."
        )
    by_width = {each.shape[1]: each for each in vectors}
    if len({len(each) for each in vectors}) > 1:
        raise MismatchError(f"{path} has {_joined([len(v) for v in vectors])} vectors, expected equal numbers.")
    return [(part, by_width[part.encoder.config.width]) for part in parts]


def _joined(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))
