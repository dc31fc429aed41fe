"""The files of a CLIP vocabulary: vocab.json and merges.txt, tokenizer.json, the merges file of the original code."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minisd._internal.atomic_files import write_text
from minisd._internal.atomic_folders import FileSet, replace_files
from minisd._internal.json_files import read_json
from minisd._internal.messages import shown
from minisd._internal.model_files import is_folder, list_folder, read_model_file, safe_join
from minisd.errors import FileFormatError, MismatchError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
NOT_GIVEN = int(1e30)  # the length that transformers writes for a tokenizer without one
MOST_IDS = 10_000_000
# A pattern of the names of all files that a tokenizer folder may have
TOKENIZER_NAMES = r"(?:vocab|added_tokens|special_tokens_map|tokenizer_config|tokenizer)\.json|merges\.txt"


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
    padding token, and the map is right. Raises FileFormatError, MismatchError or UnsafeFileError; the message names the
    file.
    """
    names = list_folder(folder)
    if not is_folder(folder):
        raise FileFormatError(f"{folder} is not a folder, expected the tokenizer folder of a checkpoint.")

    def optional_json(name: str) -> dict[str, Any]:
        return read_json(safe_join(folder, name)) if name in names else {}

    config, special_map = optional_json("tokenizer_config.json"), optional_json("special_tokens_map.json")
    added = token_ids(optional_json("added_tokens.json"), folder / "added_tokens.json")
    if "vocab.json" in names or "tokenizer.json" not in names:
        path, merges_path = safe_join(folder, "vocab.json"), safe_join(folder, "merges.txt")
        vocab, merges = read_json(path), read_merges(merges_path)
    else:
        path = merges_path = safe_join(folder, "tokenizer.json")
        vocab, merges, more = read_tokenizer_json(path)
        added |= token_ids(more, path)
    vocab = token_ids(vocab, path)
    added |= _decoder(config, folder / "tokenizer_config.json")
    options: dict[str, Any] = {}
    for role, usual in (("bos", BOS), ("eos", EOS), ("pad", EOS)):
        key = f"{role}_token"
        name = "special_tokens_map.json" if special_map.get(key) is not None else "tokenizer_config.json"
        options[role] = _special({**config, **special_map}.get(key), key, usual, folder / name)
    _check_merges(vocab, merges, options, set(added), merges_path)
    extra = sorted((i, token) for token, i in added.items() if vocab.get(token) != i)
    options["max_length"] = _max_length(config, folder / "tokenizer_config.json")
    return Tables(path, vocab, merges, extra, options)


def token_ids(table: Any, path: Path | str) -> dict[str, int]:
    """A table of tokens and their ids, checked. path: for messages."""
    if not isinstance(table, dict):
        raise FileFormatError(f"{path} is {shown(table)}, expected an object from tokens to ids.")
    for token, i in table.items():
        if type(i) is not int or not 0 <= i <= MOST_IDS:
            raise FileFormatError(f"{path} has id {shown(i)} for {shown(token)}, expected a whole number from 0 up.")
    return table


def _decoder(config: dict[str, Any], path: Path) -> dict[str, int]:
    """The tokens in tokenizer_config.json, {token: id}; the file has {"id": {"content": token}}."""
    decoder = config.get("added_tokens_decoder", {})
    try:
        return token_ids({token["content"]: int(i) for i, token in decoder.items()}, path)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(
            f"{path} has added_tokens_decoder {shown(decoder)}, expected an object from ids to tokens."
        ) from None


def _special(token: Any, key: str, usual: str, path: Path) -> str:
    """A special token, which the files hold as a text, as an object or not at all."""
    content = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(content, str):
        raise FileFormatError(f"{path} has {key} {shown(token)}, expected a text or an object with its content.")
    return usual if token is None else str(content)


def _max_length(config: dict[str, Any], path: Path) -> int:
    """The number of tokens of a prompt; transformers writes 1e30 for "not given"."""
    length = config.get("model_max_length", NOT_GIVEN)
    if length == NOT_GIVEN:
        return 77
    if type(length) is not int or not 2 <= length <= 65536:
        raise FileFormatError(f"{path} has model_max_length {shown(length)}, expected a whole number in 2..65536.")
    return length


def _check_merges(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], options: Mapping[str, str], added: set[str], path: Path
) -> None:
    """Each token is a byte, special, or made by a merge; so a list that was cut short does not fit the vocabulary."""
    made = {left + right for left, right in merges}
    known = made | added | set(options.values())
    lost = [token for token in vocab if len(token.removesuffix("</w>")) > 1 and token not in known]
    if lost:
        raise MismatchError(
            f"{path} holds {len(merges):,} merges, and none that makes {len(lost):,} tokens of the vocabulary, such as "
            f"{shown(lost[0])}; download it again."
        )
    for role in ("bos", "eos"):  # padding may be any token
        token = options[role]
        if len(token.removesuffix("</w>")) == 1 or token in made or options["bos"] == options["eos"]:
            raise MismatchError(
                f"{path.parent} has {role}_token {shown(token)}, expected a token that is no part of a word, and "
                "another one for the start than for the end; download special_tokens_map.json again."
            )


def write_folder(
    folder: str | Path,
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Mapping[str, int | None],
    roles: Mapping[str, str],
    max_length: int,
) -> None:
    """Replace the official set of files. roles: the tokens of "bos", "eos", "unk" and "pad". Raises OutputError."""
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

    def write(new: Path) -> None:
        for name, text in texts.items():
            write_text(text, new / name)

    replace_files(folder, write, FileSet("vocab.json", re.compile(TOKENIZER_NAMES)), overwrite=True)


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of tokens, one pair a line; the first line is a header unless it is a pair. Raises FileFormatError."""
    try:
        text = read_model_file(path).decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not UTF-8 text ({error}); download it again.") from error
    merges = []
    for number, line in enumerate(text.split("\n")):
        pair = line.split()
        if number == 0 and ("#version" in line or len(pair) != 2):
            continue
        if len(pair) == 2:
            merges.append((pair[0], pair[1]))
        elif pair:
            raise FileFormatError(f"{path} has {shown(line)} in line {number + 1}, expected two tokens.")
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
        if not all(isinstance(token, str) for token in (*added, *vocab, *(t for pair in merges for t in pair))):
            raise TypeError("a token is not a text")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is not in the format of CLIP's tokenizer ({shown(error)}).") from error
    if suffix != "</w>":
        raise MismatchError(f"{path} marks the end of a word by {suffix!r}, expected '</w>' as in CLIP.")
    return vocab, merges, added
