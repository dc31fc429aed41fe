"""CLIP's byte-pair encoding: prompts -> ids for the text encoder, (B, 77), saying what did not fit.

A prompt is normalised (NFC, one space for any whitespace, lower case) and split into runs of letters, single
digits and runs of other signs. Each piece becomes bytes, written as printable characters, the last one marked
`</w>`; then the learned merges are applied, the earliest learned first (Sennrich et al. 2016, Radford et al.
2021). The library `tokenizers` merges, this file does the rest, for any vocabulary in CLIP's format.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Encoding as Pieces
from tokenizers import Tokenizer as Engine

from minisd._internal import validation
from minisd._internal.vocabulary_files import BOS, EOS, read_folder, read_merges, write_folder
from minisd.errors import InputError, MismatchError

BPE_FILE_MERGES = 49152 - 256 - 2  # what openai/CLIP takes of the 262,144 merges in its file


class PromptTruncated(UserWarning):
    """A prompt is longer than the text encoder reads; the message quotes what was lost."""


@dataclass(frozen=True)
class Encoding:
    """What the text encoder reads.

    `ids` (B, L) int64; `attention_mask` (B, L) int64, 1 up to the end token, 0 on padding (Stable Diffusion
    does not use it); `dropped`: for each prompt the text that did not fit, "" where all did.
    """

    ids: torch.Tensor
    attention_mask: torch.Tensor
    dropped: list[str]


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in CLIP's files, in vocabulary order.

    Printable Latin-1 bytes stand for themselves; the others are numbered on from U+0100, in byte order.
    """
    printable = [chr(b) for first, last in ("!~", "¡¬", "®ÿ") for b in range(ord(first), ord(last) + 1)]
    return printable + [chr(256 + n) for n in range(256 - len(printable))]


def clip_vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, bytes with `</w>`, merges as learned, start, end (the last id)."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *(left + right for left, right in merges), BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}


class Tokenizer:
    """CLIP tokenizer: `tokenizer(prompts)` -> ids (B, max_length) int64.

    `vocab`: token -> id, the ids 0 to n-1. `merges`: pairs of tokens, the earliest learned first. `pad`: SD 1
    pads with the end token, SD 2 with "!", id 0. As in the reference, a `bos`, `eos` or `pad` in a prompt
    becomes that id: with SD 2's padding every "!" is a 0. Raises InputError for tables that do not belong
    together.
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
            raise InputError(f"the {len(vocab)} ids of a vocabulary must be 0 to {len(vocab) - 1}, each once")
        for token in (bos, eos, pad, *(t for left, right in merges for t in (left, right, left + right))):
            if token not in vocab:
                raise InputError(f"{token!r} is not in the vocabulary; use tables that belong together")
        if max_length < 2:
            raise InputError(f"max_length must be at least 2, for the start and end tokens, got {max_length}")
        self.vocab, self.merges = vocab, merges
        self.bos, self.eos, self.pad = bos, eos, pad
        self.bos_id, self.eos_id, self.pad_id = vocab[bos], vocab[eos], vocab[pad]
        self.max_length = max_length
        self._tokens = tokens  # by id; added ones follow the vocabulary
        self._vectors: dict[int, int] = {}  # how many ids in a row, from this one, a token stands for, if not one
        self._engine = self._build_engine()

    def _build_engine(self) -> Engine:
        # unk_token serves only a vocabulary that lacks some of the bytes
        engine = Engine(models.BPE(self.vocab, self.merges, unk_token=self.eos, end_of_word_suffix="</w>"))
        engine.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        # Letters and numbers by Unicode category: `½` and `ⅷ` are numbers, which \w and \d get wrong.
        specials = f"{re.escape(self.bos)}|{re.escape(self.eos)}"
        words = Regex(specials + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")  # openai/CLIP
        keep_words = pre_tokenizers.Split(words, "removed", invert=True)
        # use_regex: the reference splits once more, as GPT-2 does; it shows in <|ENDOFTEXT|> only
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        engine.pre_tokenizer = pre_tokenizers.Sequence([keep_words, to_bytes])
        engine.decoder = decoders.ByteLevel()
        # Normalised tokens are found in the lower-cased text, so in any case. By the official files start and
        # end are, and the padding is not, which comes last and wins where it is the end token too (SD 1).
        normalized = {self.bos: True, self.eos: True, self.pad: False}
        engine.add_special_tokens([AddedToken(t, normalized=n, special=True) for t, n in normalized.items()])
        return engine

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """The tokenizer folder of a checkpoint: vocab.json, merges.txt, or tokenizer.json (transformers 5).

        Added tokens `x`, `x_1`, `x_2` in a row are one token of three vectors. Raises FileFormatError or MismatchError,
        naming the file.
        """
        tables = read_folder(Path(path))
        try:
            tokenizer = cls(tables.vocab, tables.merges, **tables.options)
            for i, token in tables.added:
                if i != len(tokenizer):
                    raise InputError(f"the added token {token!r} has id {i} where {len(tokenizer)} is next")
                tokenizer.add_token(token)
            tokenizer._find_vectors()
        except InputError as error:
            raise MismatchError(f"{tables.path} does not fit the files beside it: {error}") from error
        return tokenizer

    @classmethod
    def from_bpe(cls, path: str | Path, *, pad: str = EOS, max_length: int = 77) -> Self:
        """The file of the original CLIP code, bpe_simple_vocab_16e6.txt(.gz): a header line, then merges.

        Raises FileFormatError or MismatchError, naming the file.
        """
        merges = read_merges(Path(path))[:BPE_FILE_MERGES]
        try:
            return cls(clip_vocabulary(merges), merges, pad=pad, max_length=max_length)
        except InputError as error:
            raise MismatchError(f"{path} is no list of CLIP merges: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write the official set: vocab.json, merges.txt, special_tokens_map.json, tokenizer_config.json.

        Added tokens go to added_tokens.json. Raises OutputError.
        """
        vocab = {token: i for i, token in enumerate(self._tokens) if token in self.vocab}
        added = {token: self.token_to_id(token) for token in self.added}
        roles = {"bos": self.bos, "eos": self.eos, "unk": self.eos, "pad": self.pad}
        write_folder(Path(folder), vocab, self.merges, added, roles, self.max_length)

    def __call__(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """Prompts (one text or a list of B) -> ids (B, max_length) int64; see `encode`."""
        return self.encode(prompts).ids

    def encode(self, prompts: str | Sequence[str], *, padding: bool = True, truncation: bool = True) -> Encoding:
        """Start token, prompt, end token, padding, for one text or a list of B.

        `padding`: fill rows up to max_length, else only up to the longest. `truncation`: cut what is longer
        than max_length, keeping the end token, and quote it in a PromptTruncated warning; else rows may be
        longer.
        Raises InputError for anything that is not text.
        """
        room = self.max_length - 2
        bodies, dropped = [], []
        for prompt in validation.prompts(prompts):
            body, starts = self._spread(self._first_pieces(prompt) if truncation else self._pieces(prompt))
            cut = truncation and len(body) > room
            bodies.append(body[:room] if cut else body)
            dropped.append(prompt[starts[room] :].strip() if cut else "")
            if cut:
                quote = dropped[-1] if len(dropped[-1]) <= 400 else dropped[-1][:400] + "..."
                message = f"the prompt has more than {room} tokens, shorten it: its end is lost, {quote!r}"
                warnings.warn(message, PromptTruncated, stacklevel=3)
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
        """The pieces of a prompt, of a very long one only the first, more than max_length - 2 all the same.

        The cut is in front of a blank. A blank is in no piece, composes with nothing under NFC and is in no
        special token, so nothing behind it can change a piece before it; added tokens may have one, then no
        cut. A word without blanks stays whole, as a merge can depend on all of it: linear in its length.
        """
        words = re.finditer(r"[^ \t\r\n]+", prompt)
        end = next((word.end() for n, word in enumerate(words) if n == self.max_length), len(prompt))
        specials = (self.bos, self.eos, self.pad, *self.added)
        if end < len(prompt) and not any(re.search(r"\s", token) for token in specials):
            pieces = self._pieces(prompt[:end])
            if len(pieces) > self.max_length - 2:  # less only where words are of other blanks, such as U+3000
                return pieces
        return self._pieces(prompt)

    def _spread(self, pieces: Pieces) -> tuple[list[int], list[int]]:
        """The ids, and where in the text each begins: a token of n vectors is n ids."""
        starts = [start for start, _ in pieces.offsets]
        if not self._vectors:
            return pieces.ids, starts
        spread = [(i + k, at) for i, at in zip(pieces.ids, starts, strict=True) for k in range(self._vectors.get(i, 1))]
        return [i for i, _ in spread], [at for _, at in spread]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of one text without start, end and padding, as in "a puppy" -> ["a</w>", "puppy</w>"].

        Bytes that are not printable ASCII show as characters of `byte_alphabet`. Raises InputError.
        """
        pieces = self._pieces(validation.text(text, "the text"))
        counts = [self._vectors.get(i, 1) for i in pieces.ids]
        return [name for token, n in zip(pieces.tokens, counts, strict=True) for name in _names(token, n)]

    def decode(self, ids: int | Sequence[int] | torch.Tensor, *, skip_special: bool = False) -> str:
        """Ids (one, or L) -> normalised text with a space after each word; broken UTF-8 becomes U+FFFD.

        `skip_special` leaves out start, end and padding. Raises InputError for ids outside of the vocabulary.
        """
        values = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        values = list(values) if isinstance(values, list | tuple) else [values]
        for value in values:
            self.id_to_token(value)  # the engine would leave out an id that it does not know
        return self._engine.decode(values, skip_special_tokens=skip_special).replace("</w>", " ").strip()

    def add_token(self, token: str, vectors: int = 1) -> int:
        """Append a token (textual inversion) and return its id, the length so far.

        Added tokens are found before the byte-pair encoding, in any case and inside of words too. One of several
        vectors becomes as many ids in a row; those after the first are the tokens `token_1`, `token_2`, ...
        Raises InputError for one that is blank, exists already or is a word of the vocabulary.
        """
        self.check_new_token(token, vectors)
        first = len(self)
        for each in _names(token, vectors):
            self._engine.add_tokens([AddedToken(each, normalized=True, special=False)])
            self._tokens.append(each)
        if vectors > 1:
            self._vectors[first] = vectors
        return first

    def check_new_token(self, token: str, vectors: int = 1) -> None:
        """Raises InputError where `add_token` would."""
        validation.text(token, "a new token")
        if not token or token != token.strip():
            raise InputError(f"a new token cannot be empty, nor begin or end with a blank, got {token!r}")
        normal = self._engine.normalizer.normalize_str
        taken = {normal(each) for each in (self.bos, self.eos, self.pad, *self.added)}
        for each in _names(token, vectors):
            known = (each, normal(each), normal(each) + "</w>")
            if normal(each) in taken or any(piece in self.vocab for piece in known):
                raise InputError(f"the token {each!r} exists already; choose a name like '<my-cat>'")

    def _find_vectors(self) -> None:
        """Know tokens of several vectors by their names, as the reference does, after reading a folder."""
        first = len(self.vocab)
        for i in range(first, len(self)):
            if i > first and self._tokens[i] == f"{self._tokens[first]}_{i - first}":
                self._vectors[first] = i - first + 1
            else:
                first = i

    @property
    def added(self) -> list[str]:
        """The tokens beyond the vocabulary, in id order."""
        return self._tokens[len(self.vocab) :]

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as `tokenize` writes it ("cat</w>"); None where there is no such token."""
        return self._engine.token_to_id(token)

    def id_to_token(self, index: int) -> str:
        """The token of an id, as `tokenize` writes it. Raises InputError outside of the vocabulary."""
        if not isinstance(index, int) or not 0 <= index < len(self):
            raise InputError(f"a token id must be a whole number from 0 to {len(self) - 1}, got {index!r}")
        return self._tokens[index]

    def __len__(self) -> int:
        """The number of ids, added tokens included."""
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} tokens, pad={self.pad!r}, max_length={self.max_length})"


def _names(token: str, vectors: int) -> list[str]:
    """What the ids of a token of several vectors are called."""
    return [token, *(f"{token}_{k}" for k in range(1, vectors))]
