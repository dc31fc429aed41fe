"""Teach the text encoder to read before it has to steer: from the state at the end of a caption alone, a linear layer
must tell what the caption says, and another, from the state at a noun, what that thing is said to be.

A text encoder that learns only through the UNet stays a bag of words for long: it knows which shapes and colours are
named, not which belongs to which, nor which thing is the left one. CLIP's contrast against captions with one thing
changed (Yuksekgonul et al. 2022) asks for the same; asking directly needs no image tower.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import CLIPTextConfig
from minisd.models import CLIPTextTransformer
from minisd.sticker.training.dataset import SHORT, UNSEEN, sample_lesson
from minisd.sticker.world.captions import (
    NAMED_SIZES,
    NAMED_STYLES,
    NUMBERS,
    POSITION_WORDS,
    Expectation,
    describe,
    expectation,
    mention,
    noun_places,
)
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS
from minisd.sticker.world.scene import INVERSE
from minisd.sticker.world.shapes import THINGS
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import Recipe, train

ANCHOR = 30.0  # on the mean square between states of variance 1: it stays at a thirtieth, and a UNet hardly notices
# What is asked about a caption and the answers there are; None: it does not say. Of two things the first is the left or
# upper one or the one behind, however the caption turns it; without a relation it is the one named first.
OF_A_THING: dict[str, list[object]] = {
    "shape": [None, *THINGS],
    "colour": [None, *COLOURS],
    "size": [None, *NAMED_SIZES],
    "position": [None, *POSITION_WORDS],
    "style": [None, *NAMED_STYLES],
}
ORDERED = ("left of", "above", "behind")  # the other relations are these, turned round
QUESTIONS: dict[str, list[object]] = {
    "number": [1, *NUMBERS.values()],
    "relation": [None, *ORDERED],
    "background": [None, *BACKGROUNDS],
    **{f"first {name}": answers for name, answers in OF_A_THING.items()},
    **{f"second {name}": answers for name, answers in OF_A_THING.items()},
}
OF_A_NOUN = ("shape", "colour", "size", "style")


class Anchor(NamedTuple):
    """The text encoder that a UNet has learned to listen to, and which tokens it knows, bool (vocabulary,)."""

    text_encoder: CLIPTextTransformer
    known: Tensor

    def distance(self, states: Tensor, ids: Tensor) -> Tensor:
        """Mean square between its states of token ids (B, L) and others (B, L, width).  -> scalar.

        Texts with a word that it does not know are free.
        """
        familiar = self.known[ids].all(1)
        moved = (states[familiar] - self.text_encoder(ids[familiar])).float().square()
        return moved.sum() / states.numel()


class Reading(NamedTuple):
    """Captions and what they say: ids (B, SHORT), answers (B, questions); for each of N nouns its row and its token
    (N, 2) and its attributes (N, 4). All int64.
    """

    ids: Tensor
    answers: Tensor
    at: Tensor
    attributes: Tensor


def answers(wanted: Expectation) -> list[int]:
    """The right answer to each question, as its place in the list of answers."""
    things, relation = wanted.things, wanted.relation
    if relation is not None and relation not in ORDERED:
        things, relation = things[::-1], INVERSE[relation]
    said: dict[str, object] = {"number": len(things), "relation": relation, "background": wanted.background}
    pair = things if len(set(things)) > 1 or relation is not None else things[:1]  # of several alike, one is enough
    for which, thing in zip(("first", "second"), pair, strict=False):
        said |= {f"{which} {name}": getattr(thing, name) for name in OF_A_THING}
    return [possible.index(said.get(question)) for question, possible in QUESTIONS.items()]


class Reader(nn.Module):
    """A text encoder and the linear layers that answer from its states at the end token and at the nouns."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.text_encoder = CLIPTextTransformer(config)
        self.answer = nn.Linear(config.width, sum(map(len, QUESTIONS.values())))
        self.of_noun = nn.Linear(config.width, sum(len(OF_A_THING[name]) for name in OF_A_NOUN))
        nn.init.normal_(self.text_encoder.token_embedding.weight, std=0.2)
        nn.init.normal_(self.text_encoder.position_embedding.weight, std=0.1)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Token ids (B, L) -> for each question the logits of its answers, (B, answers)."""
        return self.read(self.text_encoder(ids), ids)

    def read(self, states: Tensor, ids: Tensor) -> list[Tensor]:
        """The same from the text states (B, L, width)."""
        at_end = self.text_encoder.pool(states, ids)
        return list(self.answer(at_end).float().split([len(possible) for possible in QUESTIONS.values()], dim=1))

    def loss(self, reading: Reading, anchor: Anchor | None = None) -> Tensor:
        """Cross-entropy, summed over the questions.  -> scalar.

        anchor: whose states those of the text encoder must stay close to.
        """
        states = self.text_encoder(reading.ids)
        at_noun = self.of_noun(states[reading.at[:, 0], reading.at[:, 1]]).float()
        of_noun = at_noun.split([len(OF_A_THING[name]) for name in OF_A_NOUN], dim=1)
        asked = [(logits, reading.answers[:, i]) for i, logits in enumerate(self.read(states, reading.ids))]
        asked += [(logits, reading.attributes[:, i]) for i, logits in enumerate(of_noun)]
        loss = torch.stack([F.cross_entropy(logits, right) for logits, right in asked]).sum()
        return loss if anchor is None else loss + ANCHOR * anchor.distance(states, reading.ids)


def read_captions(tokenizer: Tokenizer, count: int, generator: torch.Generator) -> Reading:
    """Captions of the lessons and what they say."""
    captions, right, at, attributes = [], [], [], []
    for row in range(count):
        wanted = mention(sample_lesson(generator), generator)
        captions.append(text := describe(wanted, generator))
        right.append(answers(expectation(text)))
        for thing, places in zip(wanted.things, noun_places(text, wanted), strict=False):
            if places:
                at.append((row, places[-1] + 1))  # after the start token
                attributes.append([OF_A_THING[name].index(getattr(thing, name)) for name in OF_A_NOUN])
    ids = tokenizer(captions)[:, :SHORT]
    return Reading(ids, torch.tensor(right), torch.tensor(at), torch.tensor(attributes))


@torch.no_grad()
def reading_accuracy(reader: Reader, tokenizer: Tokenizer, count: int = 1000, seed: int = UNSEEN) -> dict[str, float]:
    """The share of right answers to each question over fresh captions: the gate before the UNet starts."""
    reading = read_captions(tokenizer, count, torch.Generator().manual_seed(seed))
    return {
        question: (logits.argmax(1) == reading.answers[:, i]).float().mean().item()
        for i, (question, logits) in enumerate(zip(QUESTIONS, reader(reading.ids), strict=True))
    }


def new_reader(config: CLIPTextConfig, seed: int = 0) -> Reader:
    """A fresh reader."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reader(config)


@torch.no_grad()
def adopt(encoder: CLIPTextTransformer, tokenizer: Tokenizer, start: CLIPTextTransformer, known: Tokenizer) -> Anchor:
    """Give a text encoder the weights of another one, which knows other words or has fewer layers.

    Embeddings are copied by token. Layers that the other one lacks change nothing before they are trained. Returns
    what the other one hears.
    """
    pairs = [(i, known.token_to_id(token)) for token, i in tokenizer.vocab.items()]
    here, there = zip(*((i, j) for i, j in pairs if j is not None), strict=True)
    embeddings = encoder.token_embedding.weight.clone()
    embeddings[list(here)] = start.token_embedding.weight[list(there)]
    kept = encoder.state_dict() | start.state_dict() | {"token_embedding.weight": embeddings}
    encoder.load_state_dict(kept)
    for layer in encoder.layers[start.config.layers :]:
        for name, weight in layer.named_parameters():
            if name.startswith(("attention.out", "contract")):  # what is added to the layer's input
                nn.init.zeros_(weight)
    heard = torch.zeros(len(embeddings), dtype=torch.bool)
    heard[list(here)] = True
    return Anchor(deepcopy(encoder).requires_grad_(False), heard)


def train_reader(
    reader: Reader,
    tokenizer: Tokenizer,
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    batch: int = 128,
    steps: int | None = None,
    anchor: Anchor | None = None,
) -> Reader:
    """Train a text encoder to read, or continue the run at `path`, for `minutes` or `steps` in all.

    anchor: the text encoder that a UNet has learned to listen to, so that it still understands. Returns the moving
    average.
    """

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        return reader.loss(read_captions(tokenizer, batch, generator), anchor)

    average = train(reader, loss, Recipe(minutes, steps, learning_rate=1e-3, warmup_steps=50), path, report)
    worst = min(reading_accuracy(average, tokenizer).items(), key=lambda item: item[1])
    report(f"reads captions: {worst[1]:.1%} right answers about the {worst[0]}, the hardest question")
    return average
