"""CLIP's byte-pair encoding: prompts -> token ids (B, 77) for the text encoder.

A prompt is normalised (NFC, one space for any whitespace, lower case) and split into runs of letters, single digits
and runs of other characters. Each piece becomes bytes, written as printable characters, and `</w>` marks the last one.
Then the learned merges are applied, the earliest learned first (Sennrich et al. 2016, Radford et al. 2021). The library
`tokenizers` applies the merges; this file does the rest, for any vocabulary in CLIP's format.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Encoding as Pieces
from tokenizers import Tokenizer as Engine

from minisd._internal import validation
from minisd._internal.added_tokens import AddedTokens
from minisd._internal.messages import shown
from minisd._internal.vocabulary_files import BOS, EOS, read_folder, read_merges, write_folder
from minisd.errors import InputError, MismatchError

BPE_FILE_MERGES = 49152 - 256 - 2  # openai/CLIP uses these of the 262,144 merges in its file


class PromptTruncated(UserWarning):
    """A prompt is longer than the text encoder reads; the message quotes the part that is ignored."""


@dataclass(frozen=True)
class Encoding:
    """The input of the text encoder.

    `ids` (B, L) int64; `attention_mask` (B, L) int64, 1 up to the end token, 0 on padding (Stable Diffusion does not
    use it); `dropped`: for each prompt the text that was cut off, "" if nothing was.
    """

    ids: torch.Tensor
    attention_mask: torch.Tensor
    dropped: list[str]


def byte_alphabet() -> list[str]:
    """The 256 characters that represent bytes in CLIP's files, in vocabulary order.

    Printable Latin-1 bytes represent themselves; the others are numbered from U+0100, in byte order.
    """
    printable = [chr(b) for first, last in ("!~", "¡¬", "®ÿ") for b in range(ord(first), ord(last) + 1)]
    return printable + [chr(256 + n) for n in range(256 - len(printable))]


def clip_vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, bytes with `</w>`, merges in learned order, start, end (the last id)."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *(left + right for left, right in merges), BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}


class Tokenizer:
    """CLIP tokenizer: `tokenizer(prompts)` -> ids (B, max_length) int64.

    `vocab`: token -> id, the ids 0 to n-1. `merges`: pairs of tokens, the earliest learned first. `pad`: SD 1 pads with
    the end token, SD 2 with "!", id 0. As in the reference, a `bos`, `eos` or `pad` in a prompt becomes that id: with
    SD 2's padding every "!" is a 0. Raises InputError if vocabulary, merges and special tokens do not fit together.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        *,
        bos: str = BOS,
        eos: str = EOS,
        pad: str = EOS,
        max_length: int = 77,
    ) -> None:
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(vocab))):
            raise InputError(f"a vocabulary of {len(vocab)} tokens must have the ids 0 to {len(vocab) - 1}, each once.")
        for token in (bos, eos, pad, *(t for left, right in merges for t in (left, right, left + right))):
            if token not in vocab:
                raise InputError(f"{shown(token)} is not in the vocabulary; use vocabulary and merges of one model.")
        if max_length < 2:
            raise InputError(f"max_length is {max_length}, expected at least 2, for the start and end tokens.")
        self.vocab, self.merges = vocab, merges
        self.bos, self.eos, self.pad = bos, eos, pad
        self.bos_id, self.eos_id, self.pad_id = vocab[bos], vocab[eos], vocab[pad]
        self.max_length = max_length
        self._tokens = tokens  # by id
        self._engine = self._build_engine()
        self._added = AddedTokens(self._engine, vocab, (bos, eos, pad))

    def _build_engine(self) -> Engine:
        # unk_token is only used by a vocabulary that lacks some of the bytes
        engine = Engine(models.BPE(self.vocab, self.merges, unk_token=self.eos, end_of_word_suffix="</w>"))
        engine.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        # Letters and numbers by Unicode category: `½` and `ⅷ` are numbers, but not for \w and \d.
        specials = f"{re.escape(self.bos)}|{re.escape(self.eos)}"
        words = Regex(specials + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")  # openai/CLIP
        keep_words = pre_tokenizers.Split(words, "removed", invert=True)
        # use_regex: the reference splits once more, as GPT-2 does; only <|ENDOFTEXT|> shows it
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        engine.pre_tokenizer = pre_tokenizers.Sequence([keep_words, to_bytes])
        engine.decoder = decoders.ByteLevel()
        # Normalised tokens are found in the lower-cased text, so in any case. In the official files the start and end
        # tokens are normalised and the padding token is not; it is listed last because it wins if it is also `eos`.
        normalized = {self.bos: True, self.eos: True, self.pad: False}
        engine.add_special_tokens([AddedToken(t, normalized=n, special=True) for t, n in normalized.items()])
        return engine

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """Read the tokenizer folder of a checkpoint: vocab.json and merges.txt, or tokenizer.json (transformers 5).

        Added tokens `x`, `x_1`, `x_2` in a row are one token of three vectors. Raises FileFormatError or MismatchError;
        the message names the file.
        """
        tables = read_folder(Path(path))
        try:
            tokenizer = cls(tables.vocab, tables.merges, **tables.options)
            tokenizer.restore_tokens(tables.added)
        except InputError as error:
            raise MismatchError(f"{tables.path} does not fit the files beside it: {error}") from error
        return tokenizer

    @classmethod
    def from_bpe(cls, path: str | Path, *, pad: str = EOS, max_length: int = 77) -> Self:
        """Read the file of the original CLIP code, bpe_simple_vocab_16e6.txt(.gz): a header line, then merges.

        Raises FileFormatError or MismatchError; the message names the file.
        """
        merges = read_merges(Path(path))[:BPE_FILE_MERGES]
        try:
            return cls(clip_vocabulary(merges), merges, pad=pad, max_length=max_length)
        except InputError as error:
            raise MismatchError(f"{path} is not a list of CLIP merges: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json.

        Added tokens are written to added_tokens.json. Raises OutputError.
        """
        vocab = {token: i for i, token in enumerate(self._tokens)}
        roles = {"bos": self.bos, "eos": self.eos, "unk": self.eos, "pad": self.pad}
        write_folder(folder, vocab, self.merges, self.added_ids, roles, self.max_length)

    def __call__(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """Prompts (one text or a list of B) -> ids (B, max_length) int64; see `encode`."""
        return self.encode(prompts).ids

    def encode(self, prompts: str | Sequence[str], *, padding: bool = True, truncation: bool = True) -> Encoding:
        """Start token, prompt, end token, padding, for one text or a list of B.

        `padding`: fill rows up to max_length, else only up to the longest row. `truncation`: cut prompts that are
        longer than max_length, keep the end token and quote the cut text in a PromptTruncated warning; else rows may
        be longer. Raises InputError for anything that is not text.
        """
        room = self.max_length - 2
        bodies, dropped = [], []
        for prompt in validation.prompts(prompts):
            pieces = self._added.expand(self._first_pieces(prompt) if truncation else self._pieces(prompt))
            cut = truncation and len(pieces) > room
            bodies.append([piece.id for piece in (pieces[:room] if cut else pieces)])
            dropped.append(prompt[pieces[room].start :].strip() if cut else "")
            if cut:
                quote = dropped[-1] if len(dropped[-1]) <= 400 else dropped[-1][:400] + "..."
                message = f"the prompt has more than {room} tokens, and its end is ignored: {quote!r}; shorten it."
                warnings.warn(message, PromptTruncated, stacklevel=2)
        longest = max(len(body) + 2 for body in bodies)
        length = max(self.max_length, longest) if padding else longest
        ids = torch.full((len(bodies), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, body in enumerate(bodies):
            ids[row, : len(body) + 2] = torch.tensor([self.bos_id, *body, self.eos_id])
            mask[row, : len(body) + 2] = 1
        return Encoding(ids, mask, dropped)

    def _pieces(self, text: str) -> Pieces:
        return self._engine.encode(text, add_special_tokens=False)

    def _first_pieces(self, prompt: str) -> Pieces:
        """The pieces of a prompt; of a very long prompt only the first ones, but more than max_length - 2.

        The prompt is cut before a blank. A blank is in no piece, composes with nothing under NFC and is in no special
        token, so text after it cannot change a piece before it. Added tokens may contain blanks; then nothing is cut.
        A word without blanks stays whole, because a merge can depend on all of it: time is linear in its length.
        """
        words = re.finditer(r"[^ \t\r\n]+", prompt)
        end = next((word.end() for n, word in enumerate(words) if n == self.max_length), len(prompt))
        specials = (self.bos, self.eos, self.pad, *self.added)
        if end < len(prompt) and not any(re.search(r"\s", token) for token in specials):
            pieces = self._pieces(prompt[:end])
            if len(pieces) > self.max_length - 2:  # fewer if some words consist of other blanks, such as U+3000
                return pieces
        return self._pieces(prompt)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one text without start, end and padding: "a puppy" -> ["a</w>", "puppy</w>"].

        Bytes that are not printable ASCII show as characters of `byte_alphabet`. Raises InputError.
        """
        return [piece.token for piece in self._added.expand(self._pieces(validation.text(text, "the text")))]

    def decode(self, ids: int | Sequence[int] | torch.Tensor, *, skip_special: bool = False) -> str:
        """Ids (one, or L) -> normalised text with a space after each word; broken UTF-8 becomes U+FFFD.

        `skip_special` leaves out start, end and padding. Raises InputError for ids outside the vocabulary.
        """
        values = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        values = list(values) if isinstance(values, list | tuple) else [values]
        for value in values:
            self.id_to_token(value)  # the engine would silently skip an unknown id
        return self._engine.decode(values, skip_special_tokens=skip_special).replace("</w>", " ").strip()

    def add_token(self, token: str, vectors: int = 1) -> int:
        """Append a token (textual inversion) and return its id.

        Added tokens are found before the byte-pair encoding, in any case and also inside words. A token of several
        vectors becomes as many ids in a row; those after the first are the tokens `token_1`, `token_2`, ...
        Raises InputError for a token that is blank, exists already or is a word of the vocabulary.
        """
        return self._added.add(token, vectors)

    def restore_tokens(self, stored: Iterable[tuple[int, str]]) -> None:
        """Append the added tokens of a saved model, (id, token) sorted by id.

        `x`, `x_1`, `x_2` in a row become one token of three vectors; tokens that exist with their id are kept. Raises
        InputError for a token that cannot have its id.
        """
        self._added.restore(stored)

    def check_new_token(self, token: str, vectors: int = 1) -> None:
        """Raises InputError if `add_token` would."""
        self._added.check(token, vectors)

    @property
    def added(self) -> list[str]:
        """The tokens after the vocabulary, in id order."""
        return list(self._added.names)

    @property
    def added_ids(self) -> dict[str, int]:
        """The ids of the tokens after the vocabulary."""
        return {token: i for i, token in enumerate(self._added.names, len(self._tokens))}

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as `tokenize` writes it ("cat</w>"); None for an unknown token."""
        return self._engine.token_to_id(token)

    def id_to_token(self, index: int) -> str:
        """The token of an id, as `tokenize` writes it. Raises InputError outside the vocabulary."""
        if not isinstance(index, int) or not 0 <= index < len(self):
            raise InputError(f"a token id is {shown(index)}, expected a whole number in 0..{len(self) - 1}.")
        known = len(self._tokens)
        return self._tokens[index] if index < known else self._added.names[index - known]

    def __len__(self) -> int:
        """The number of ids, added tokens included."""
        return len(self._tokens) + len(self._added.names)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} tokens, pad={self.pad!r}, max_length={self.max_length})"
