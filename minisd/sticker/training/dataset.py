"""The training data: scenes of Sticker World that are not held out, and a vocabulary of its words."""

from collections.abc import Iterable
from itertools import pairwise

import torch

from minisd.sticker.world.captions import TWO_CLAUSES, WORDS, Expectation, write_caption
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Scene
from minisd.sticker.world.splits import held_out
from minisd.sticker.world.synonyms import rephrase
from minisd.tokenizer import Tokenizer, clip_vocabulary
from minisd.training.run_files import fingerprint

FIRST_TEST_SEED = 1_000_000  # training uses no seed from here on
VOCABULARY = " ".join(WORDS)
STYLED_PROBABILITY = 0.3  # probability, see `sample_scene`; a fifth of the scenes then show a style other than flat
REPHRASED = 0.4  # share of the captions
CLAUSES = 0.15  # share of the captions with a relation that are two clauses
CAPTION_TOKENS = 30  # in training: longer than every caption, and padding costs as much as words


def new_tokenizer() -> Tokenizer:
    """The tokenizer of Sticker World."""
    return learn_vocabulary(WORDS)


def sample_training_scene(generator: torch.Generator) -> Scene:
    """Draw a scene that is not held out: two objects in half of them, half of which overlap, or several of one kind."""
    probabilities = {"two": 0.52, "several": 0.34, "white": 0.65, "styled": STYLED_PROBABILITY, "overlapping": 0.5}
    while held_out(scene := sample_scene(generator, **probabilities)):
        pass
    return scene


def write_training_caption(content: Expectation, generator: torch.Generator) -> str:
    """Put the content of a caption into words, some of them as people type prompts."""
    in_clauses = content.relation is not None and torch.rand((), generator=generator) < CLAUSES
    caption = write_caption(content, generator, TWO_CLAUSES if in_clauses else None)
    return rephrase(caption, generator) if torch.rand((), generator=generator) < REPHRASED else caption


def training_scenes(count: int, seed: int) -> list[Scene]:
    """The first `count` training scenes of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [sample_training_scene(generator) for _ in range(count)]


def scenes_fingerprint() -> str:
    """A short hash of the recipe by which training scenes are drawn: of a few of them."""
    return fingerprint(repr(training_scenes(8, seed=0)))


def learn_vocabulary(words: Iterable[str], max_length: int = 77) -> Tokenizer:
    """A byte-pair vocabulary in CLIP's format with one token for each word (lower-case ASCII letters).

    For each word the first two remaining pieces are merged until one piece remains. New merges have the lowest
    priority, so that they never split an earlier word. Other text is encoded as bytes.
    """
    merges: list[tuple[str, str]] = []
    for word in sorted(set(words)):
        while len(pieces := apply_merges(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    return Tokenizer(clip_vocabulary(merges), merges, max_length=max_length)


def apply_merges(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The pieces of a word: of all adjacent pairs the one learned first is merged, until none is known."""
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
