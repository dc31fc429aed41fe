"""Tokens that textual inversion adds to a vocabulary: each stands for one embedding vector or for several."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Engine

from minisd._internal import validation
from minisd._internal.messages import shown
from minisd.errors import InputError


class Piece(NamedTuple):
    """One token of a text, and the position in the text where it begins."""

    id: int
    token: str
    start: int


class AddedTokens:
    """The tokens after a vocabulary, in id order.

    A token of n vectors has n consecutive ids: its own, and those of the tokens `token_1`, `token_2`, ...
    """

    def __init__(self, engine: Engine, vocab: Mapping[str, int], special: tuple[str, ...]) -> None:
        self.names: list[str] = []
        self._engine, self._vocab, self._special = engine, vocab, special
        self._vectors: dict[int, int] = {}  # first id -> number of vectors, for tokens of several vectors

    def add(self, token: str, vectors: int) -> int:
        """Append a token and return its first id. Raises InputError as `check` does."""
        self.check(token, vectors)
        first = len(self._vocab) + len(self.names)
        for name in _names(token, vectors):
            self._engine.add_tokens([AddedToken(name, normalized=True, special=False)])
            self.names.append(name)
        if vectors > 1:
            self._vectors[first] = vectors
        return first

    def check(self, token: str, vectors: int) -> None:
        """Raises InputError for a token that is blank, exists already or is a word of the vocabulary."""
        validation.text(token, "a new token")
        if not token or token != token.strip():
            raise InputError(f"a new token is {shown(token)}, expected a name without blanks at its ends; rename it.")
        normal = self._engine.normalizer.normalize_str
        taken = {normal(name) for name in (*self._special, *self.names)}
        for name in _names(token, vectors):
            spellings = (name, normal(name), normal(name) + "</w>")
            if normal(name) in taken or any(each in self._vocab for each in spellings):
                raise InputError(f"the token {shown(name)} exists already; choose a name like '<my-cat>'.")

    def restore(self, stored: Iterable[tuple[int, str]]) -> None:
        """Append the tokens that a saved model has beyond its vocabulary: (id, name), sorted by id.

        `x`, `x_1`, `x_2` in a row are one token of three vectors, as in the reference. Tokens that exist with their id
        are kept. Raises InputError for a token that cannot have its id.
        """
        for i, token in stored:
            if self._engine.token_to_id(token) == i:
                continue
            if i != (expected := len(self._vocab) + len(self.names)):
                raise InputError(f"the added token {shown(token)} has id {i}, expected {expected}.")
            self.add(token, 1)
        first = 0
        for i, name in enumerate(self.names):
            if i > first and name == f"{self.names[first]}_{i - first}":
                self._vectors[len(self._vocab) + first] = i - first + 1
            else:
                first = i

    def expand(self, encoded: Encoding) -> list[Piece]:
        """The pieces of encoded text; a token of n vectors becomes n pieces."""
        pieces = zip(encoded.ids, encoded.tokens, encoded.offsets, strict=True)
        return [
            Piece(i + k, name, start)
            for i, token, (start, _) in pieces
            for k, name in enumerate(_names(token, self._vectors.get(i, 1)))
        ]


def _names(token: str, vectors: int) -> list[str]:
    """The names of the ids of a token."""
    return [token, *(f"{token}_{k}" for k in range(1, vectors))]
