"""The files that a CLIP vocabulary comes in: vocab.json and merges.txt, tokenizer.json, the original list of merges."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from minisd.errors import FileFormatError, MismatchError


def special(tables: dict[str, Any], role: str, usual: str) -> str:
    """The special token of a role, which the files give as text or as an object, or not at all."""
    token = tables.get(f"{role}_token")
    token = usual if token is None else token["content"] if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise TypeError(f"{role}_token is {token!r}")
    return token


def read_text(path: Path) -> str:
    """UTF-8 text of a file, unpacked where it is a gzip file."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing, which the tokenizer needs; fetch it again") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as text ({error}); fetch it again") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        got = type(value).__name__
        raise FileFormatError(f"{path} holds a {got} where a JSON object was expected; fetch it again")
    return value


def optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Two tokens a line; the first line is a header unless it is a merge itself."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n")):
        pair = line.split()
        if number == 0 and ("#version" in line or len(pair) != 2):
            continue
        if len(pair) == 2:
            merges.append((pair[0], pair[1]))
        elif pair:
            raise FileFormatError(f"{path} has {line[:80]!r} in line {number + 1}, expected two tokens")
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
        raise FileFormatError(f"{path} is not in the form of CLIP's tokenizer ({error!r})") from error
    if suffix != "</w>":
        raise MismatchError(f"{path} marks the end of a word by {suffix!r} where CLIP has '</w>'")
    return vocab, merges, added
