"""The merges of byte-pair encoding."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise

import torch

from minisd._internal import validation
from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import generator, whole
from minisd.tokenizer import Encoding, Tokenizer

TASK = """
Merge the pieces of one word (Sennrich et al. 2016): as long as some pair of neighbours is known, merge the pair
that was learned first, wherever it is.

pieces: the letters of the word, the last one with "</w>", such as ["s", "t", "a", "r</w>"].
ranks: {pair: when it was learned}, such as {("s", "t"): 0, ("a", "r</w>"): 1}; smaller is earlier.
-> the pieces that are left, such as ["star</w>"].
"""

Ranks = dict[tuple[str, str], int]


def byte_pairs(pieces: list[str], ranks: Ranks) -> list[str]:
    pieces = list(pieces)
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        first = min(known, key=ranks.__getitem__)
        pieces = _merged(pieces, first)
    return pieces


def _merged(pieces: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """All non-overlapping occurrences of a pair merged, from the left."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def cases() -> list[Case]:
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2, ("c", "d</w>"): 3, ("abc", "d</w>"): 4}
    twice = {("n", "a"): 0, ("a", "n"): 1, ("na", "na"): 2, ("b", "a"): 3}
    return [
        Case("an early pair in the middle", (["a", "b", "c", "d</w>"], ranks)),
        Case("a pair that occurs twice", (["b", "a", "n", "a", "n", "a", "x</w>"], twice)),
        Case("ranks in another order", (["a", "b", "c", "d</w>"], dict(reversed(ranks.items())))),
        Case("nothing to merge", (["q", "z</w>"], ranks)),
        Case("one letter", (["a</w>"], ranks)),
        Case("nine letters", _drawn(100)),
        Case("nine other letters", _drawn(200)),
    ]


def _drawn(seed: int) -> tuple[list[str], Ranks]:
    """A word of the letters a, b and c, and some pairs; pairs of longer pieces are learned after those of letters."""
    letters = ["abc"[whole(0, 3, seed=seed + k)] for k in range(9)]
    single = [(a, b) for a in "abc" for b in "abc"]
    double = [(a + b, c) for a, b in single for c in "abc"]
    known = [pairs[k] for pairs in (single, double) for k in torch.randperm(len(pairs), generator=generator(seed))[:7]]
    return [*letters, "x</w>"], {pair: rank for rank, pair in enumerate(known)}


def _from_the_left(pieces: list[str], ranks: Ranks) -> list[str]:
    pieces = list(pieces)
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        pieces = _merged(pieces, known[0])
    return pieces


def _latest_first(pieces: list[str], ranks: Ranks) -> list[str]:
    pieces = list(pieces)
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        pieces = _merged(pieces, max(known, key=ranks.__getitem__))
    return pieces


def _one_pass(pieces: list[str], ranks: Ranks) -> list[str]:
    known = [pair for pair in pairwise(pieces) if pair in ranks]
    return _merged(pieces, min(known, key=ranks.__getitem__)) if known else list(pieces)


def _place_by_place(pieces: list[str], ranks: Ranks) -> list[str]:
    """Merges one place at a time, which gives the same."""
    pieces = list(pieces)
    while True:
        places = [(ranks[pair], k) for k, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not places:
            return pieces
        _, k = min(places)
        pieces[k : k + 2] = [pieces[k] + pieces[k + 1]]


def install(solution: Solution) -> AbstractContextManager[None]:
    """The tokenizer with the solution, for prompts of letters and blanks."""
    plain = Tokenizer.encode

    def encode(
        self: Tokenizer, prompts: str | Sequence[str], *, padding: bool = True, truncation: bool = True
    ) -> Encoding:
        texts = validation.prompts(prompts)
        if not padding or not all(re.fullmatch(r"[a-z ]*", text) for text in texts):
            return plain(self, prompts, padding=padding, truncation=truncation)
        ranks = {pair: k for k, pair in enumerate(self.merges)}
        ids = torch.full((len(texts), self.max_length), self.pad_id)
        for row, text in enumerate(texts):
            words = ([*word[:-1], f"{word[-1]}</w>"] for word in text.split())
            body = [self.vocab[piece] for word in words for piece in solution(word, ranks)][: self.max_length - 2]
            ids[row, : len(body) + 2] = torch.tensor([self.bos_id, *body, self.eos_id])
        return Encoding(ids, (ids != self.pad_id).long(), [""] * len(texts))

    return replaced(Tokenizer, "encode", encode)


EXERCISE = Exercise(
    number=9,
    name="byte_pairs",
    title="Byte-pair encoding",
    level=3,
    minutes=25,
    notebook="10",
    task=TASK,
    reference=byte_pairs,
    answer=Tokenizer,
    cases=cases,
    mistakes=(
        Mistake("the leftmost known pair is merged; expected the one that was learned first", _from_the_left),
        Mistake("the pair that was learned last is merged first", _latest_first),
        Mistake("only one pair is merged; go on until no pair is known", _one_pass),
    ),
    hints=(
        "A loop: of all neighbours, not only the leftmost, merge the pair learned first. It ends when none is known.",
        "zip(pieces, pieces[1:]) gives the neighbouring pairs; min(..., key=...) finds the earliest.",
        "After a merge there are new neighbours, so look again from the beginning.",
    ),
    install=install,
    variants=(_place_by_place,),
)
