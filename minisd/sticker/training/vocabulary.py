"""A small vocabulary in CLIP's format, in which every word of a world is one token."""

from collections.abc import Iterable
from itertools import pairwise

from minisd.tokenizer import Tokenizer, clip_vocabulary

Pair = tuple[str, str]


def learn_vocabulary(words: Iterable[str], max_length: int = 77) -> Tokenizer:
    """A byte-pair vocabulary that has each word (lower-case ASCII letters) as one token; other text is bytes.

    Word by word, the first two pieces that are left are merged until one piece is left. A new merge comes last, so
    it never takes apart a word that is whole already.
    """
    merges: list[Pair] = []
    for word in sorted(set(words)):
        while len(pieces := apply_merges(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    return Tokenizer(clip_vocabulary(merges), merges, max_length=max_length)


def apply_merges(word: str, merges: list[Pair]) -> list[str]:
    """The pieces of a word: of all pairs of neighbours, join the one learned earliest, again and again."""
    rank = {pair: i for i, pair in enumerate(merges)}
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: rank.get(pair, len(merges)))
        if best not in rank:
            break
        i = pairs.index(best)
        pieces[i : i + 2] = ["".join(best)]
    return pieces
