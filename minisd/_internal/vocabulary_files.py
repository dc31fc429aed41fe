"""The files of a CLIP vocabulary: vocab.json and merges.txt, tokenizer.json, the merges file of the original code."""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minisd._internal.atomic_files import write_text
from minisd._internal.json_files import read_json
from minisd.errors import FileFormatError, MismatchError, OutputError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


class Tables(NamedTuple):
    """The contents of a tokenizer folder: vocabulary, merges, added tokens with their ids, options of Tokenizer."""

    path: Path  # the file that holds the vocabulary
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: list[tuple[int, str]]  # sorted by id
    options: dict[str, Any]


def read_folder(folder: Path) -> Tables:
    """Read the tokenizer folder of a checkpoint: vocab.json and merges.txt, or tokenizer.json, and their companions.

    Special tokens come from special_tokens_map.json, then from tokenizer_config.json: in SD 2 the two disagree on the
    padding token, and the map is right. Raises FileFormatError or MismatchError; the message names the file.
    """
    if not folder.is_dir():
        raise FileFormatError(f"{folder} is not a folder, expected the tokenizer folder of a checkpoint.")
    config = optional_json(folder / "tokenizer_config.json")
    specials = {**config, **optional_json(folder / "special_tokens_map.json")}
    added = optional_json(folder / "added_tokens.json")
    path = folder / "vocab.json"
    if path.exists() or not (folder / "tokenizer.json").exists():
        vocab, merges = read_json(path), read_merges(folder / "merges.txt")
    else:
        path = folder / "tokenizer.json"
        vocab, merges, more = read_tokenizer_json(path)
        added |= more
    if not all(type(i) is int for i in vocab.values()):
        raise FileFormatError(f"{path} has ids that are not whole numbers; download it again.")
    try:
        added |= {token["content"]: int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
        extra = sorted((int(i), token) for token, i in added.items() if vocab.get(token) != i)
        options = {role: special(specials, role, usual) for role, usual in (("bos", BOS), ("eos", EOS), ("pad", EOS))}
        length = min(config.get("model_max_length", 77), 10**6)
        length = 77 if length == 10**6 else int(length)  # transformers writes 1e30 for "not given"
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        files = f"{folder / 'tokenizer_config.json'}, special_tokens_map.json or added_tokens.json"
        raise FileFormatError(f"{files} is not in CLIP's format ({error!r}); download them again.") from error
    return Tables(path, vocab, merges, extra, {**options, "max_length": length})


def write_folder(
    folder: Path,
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Mapping[str, int | None],
    roles: Mapping[str, str],
    max_length: int,
) -> None:
    """Write the official set of files. roles: the tokens of "bos", "eos", "unk" and "pad". Raises OutputError."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    specials = {f"{role}_token": {"content": roles[role], **flags} for role in ("bos", "eos", "unk")}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": roles["pad"],
        "tokenizer_class": "CLIPTokenizer",
        **{role: {"__type": "AddedToken", **token} for role, token in specials.items()},
    }
    texts = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *map(" ".join, merges))),
        "special_tokens_map.json": json.dumps({**specials, "pad_token": roles["pad"]}, indent=2),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }
    if added:
        texts["added_tokens.json"] = json.dumps(added, indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the tokenizer cannot be saved in {folder} ({error}); choose another folder.") from error
    for name, text in texts.items():
        write_text(text, folder / name, overwrite=True)


def special(tables: dict[str, Any], role: str, usual: str) -> str:
    """The special token of a role, which the files hold as a text, as an object or not at all."""
    token = tables.get(f"{role}_token")
    token = usual if token is None else token["content"] if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise TypeError(f"{role}_token is {token!r}")
    return token


def read_text(path: Path) -> str:
    """The UTF-8 text of a file; gzip files are decompressed."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing, and the tokenizer needs it; download it again.") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as text ({error}); download it again.") from error


def optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of tokens, one pair a line; the first line is a header unless it is a pair."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n")):
        pair = line.split()
        if number == 0 and ("#version" in line or len(pair) != 2):
            continue
        if len(pair) == 2:
            merges.append((pair[0], pair[1]))
        elif pair:
            raise FileFormatError(f"{path} has {line[:80]!r} in line {number + 1}, expected two tokens.")
    return merges


def read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Vocabulary, merges and added tokens."""
    data = read_json(path)
    try:
        model = data["model"]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        merges = [(left, right) for left, right in pairs]
        added = {token["content"]: token["id"] for token in data["added_tokens"]}
        suffix, vocab = model["end_of_word_suffix"], dict(model["vocab"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is not in the format of CLIP's tokenizer ({error!r}).") from error
    if suffix != "</w>":
        raise MismatchError(f"{path} marks the end of a word by {suffix!r}, expected '</w>' as in CLIP.")
    return vocab, merges, added
