"""Train the text encoder with linear probes: from its states alone, linear layers must recover a caption's content.

One layer answers questions about the caption from the state at the end token, another about each object from the state
at its noun. A text encoder that is trained only through the UNet remains a bag of words for long: it represents which
shapes and colours are named, but not which belong together, nor which object is the left one. CLIP's contrast with
captions in which one object is changed (Yuksekgonul et al. 2022) trains the same; probes need no image encoder.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import CLIPTextConfig
from minisd.models import CLIPTextTransformer
from minisd.sticker.training.dataset import (
    CAPTION_TOKENS,
    FIRST_TEST_SEED,
    sample_training_scene,
    scenes_fingerprint,
    write_training_caption,
)
from minisd.sticker.world.captions import (
    ATTRIBUTES,
    NUMBERS,
    Expectation,
    ObjectExpectation,
    noun_indices,
    parse_caption,
    select_content,
)
from minisd.sticker.world.palette import BACKGROUNDS
from minisd.sticker.world.scene import INVERSE_RELATION
from minisd.sticker.world.synonyms import CAPTION_WORD
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import Recipe, TrainingRun, train

TEXT_WIDTH = 128
REFERENCE_WEIGHT = 30.0  # of the mean square distance between states of variance 1; it stays near 1/30
# Questions with their possible answers; None: the caption does not mention it. Of two objects the first is the left,
# the upper or the rear one, in any wording; without a relation it is the one named first.
Questions = Mapping[str, list[object]]
ATTRIBUTE_QUESTIONS: Questions = {name: [None, *values] for name, values in ATTRIBUTES.items()}
CANONICAL_RELATIONS = ("left of", "above", "behind", "beside")  # the other relations are inverses of these
CAPTION_QUESTIONS: Questions = {
    "number": [1, *NUMBERS.values()],
    "relation": [None, *CANONICAL_RELATIONS],
    "background": [None, *BACKGROUNDS],
    **{f"first {name}": answers for name, answers in ATTRIBUTE_QUESTIONS.items()},
    **{f"second {name}": answers for name, answers in ATTRIBUTE_QUESTIONS.items()},
}
OBJECT_QUESTIONS: Questions = {name: ATTRIBUTE_QUESTIONS[name] for name in ("shape", "colour", "size", "style")}


class FrozenReference(NamedTuple):
    """The text encoder that an existing UNet was trained with, and the tokens that it knows, bool (vocabulary,)."""

    text_encoder: CLIPTextTransformer
    known_tokens: Tensor

    def distance(self, states: Tensor, ids: Tensor) -> Tensor:
        """Mean square distance of its states for token ids (B, L) to others (B, L, width).  -> scalar.

        Texts with an unknown token do not count.
        """
        known = self.known_tokens[ids].all(1)
        moved = (states[known] - self.text_encoder(ids[known])).float().square()
        return moved.sum() / states.numel()


class ProbeBatch(NamedTuple):
    """Captions with the right answers, all int64.

    ids (B, CAPTION_TOKENS); answers (B, caption questions); for each of N nouns its row and token (N, 2), and the
    answers (N, object questions).
    """

    ids: Tensor
    answers: Tensor
    nouns: Tensor
    noun_answers: Tensor


def caption_answers(content: Expectation) -> list[int]:
    """The right answer to each caption question, as an index into the possible answers."""
    objects, relation = content.objects, content.relation
    if relation is not None and relation not in CANONICAL_RELATIONS:
        objects, relation = objects[::-1], INVERSE_RELATION[relation]
    right: dict[str, object] = {"number": len(objects), "relation": relation, "background": content.background}
    several = len(set(objects)) == 1 and relation is None
    for which, obj in zip(("first", "second"), objects[:1] if several else objects, strict=False):
        right |= {f"{which} {name}": getattr(obj, name) for name in ATTRIBUTE_QUESTIONS}
    return [possible.index(right.get(question)) for question, possible in CAPTION_QUESTIONS.items()]


def object_answers(obj: ObjectExpectation) -> list[int]:
    """The right answer to each object question, as an index into the possible answers."""
    return [possible.index(getattr(obj, name)) for name, possible in OBJECT_QUESTIONS.items()]


def probe_layer(width: int, questions: Questions) -> nn.Linear:
    """A linear layer with one logit for each possible answer."""
    return nn.Linear(width, sum(map(len, questions.values())))


def answer_losses(logits: Tensor, questions: Questions, answers: Tensor) -> Tensor:
    """The cross-entropy of each question (Q,), from the logits of a probe layer and the answers (B, Q)."""
    parts = split_by_question(logits, questions)
    return torch.stack([F.cross_entropy(each, right) for each, right in zip(parts, answers.T, strict=True)])


def split_by_question(logits: Tensor, questions: Questions) -> tuple[Tensor, ...]:
    """The logits (B, answers) of each question."""
    return logits.float().split([len(possible) for possible in questions.values()], dim=1)


class CaptionProbe(nn.Module):
    """A text encoder with linear layers that answer questions from its states at the end token and at the nouns."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.text_encoder = CLIPTextTransformer(config)
        self.caption_layer = probe_layer(config.width, CAPTION_QUESTIONS)
        self.noun_layer = probe_layer(config.width, OBJECT_QUESTIONS)
        nn.init.normal_(self.text_encoder.token_embedding.weight, std=0.2)
        nn.init.normal_(self.text_encoder.position_embedding.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> the logits of the caption questions."""
        return self.caption_layer(self.text_encoder.pool(self.text_encoder(ids), ids))

    def loss(self, batch: ProbeBatch, reference: FrozenReference | None = None) -> Tensor:
        """Cross-entropy, summed over the questions.  -> scalar.

        reference: a text encoder whose states must be approximately kept.
        """
        states = self.text_encoder(batch.ids)
        at_noun = self.noun_layer(states[batch.nouns[:, 0], batch.nouns[:, 1]])
        at_end = self.caption_layer(self.text_encoder.pool(states, batch.ids))
        of_captions = answer_losses(at_end, CAPTION_QUESTIONS, batch.answers)
        of_nouns = answer_losses(at_noun, OBJECT_QUESTIONS, batch.noun_answers)
        loss = torch.cat([of_captions, of_nouns]).sum()
        return loss if reference is None else loss + REFERENCE_WEIGHT * reference.distance(states, batch.ids)


def text_config(vocab_size: int) -> CLIPTextConfig:
    """The sizes of the text encoder."""
    return CLIPTextConfig(vocab_size, width=TEXT_WIDTH, layers=4, heads=4, mlp_width=4 * TEXT_WIDTH)


def new_caption_probe(config: CLIPTextConfig, seed: int = 0) -> CaptionProbe:
    """An untrained text encoder with its probes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CaptionProbe(config)


def sample_probe_batch(tokenizer: Tokenizer, count: int, generator: torch.Generator) -> ProbeBatch:
    """Captions of training scenes with the right answers.

    The caption's content is parsed from its words: a template may leave out a part of what was selected.
    """
    captions, answers, nouns, noun_answers = [], [], [], []
    for row in range(count):
        content = select_content(sample_training_scene(generator), generator)
        captions.append(text := write_training_caption(content, generator))
        answers.append(caption_answers(parse_caption(text)))
        for obj, indices in zip(content.objects, noun_indices(text, content), strict=False):
            if indices:
                nouns.append((row, indices[-1] + 1))  # after the start token
                noun_answers.append(object_answers(obj))
    ids = tokenizer(captions)[:, :CAPTION_TOKENS]
    return ProbeBatch(ids, torch.tensor(answers), torch.tensor(nouns), torch.tensor(noun_answers))


@torch.no_grad()
def probe_accuracy(
    probe: CaptionProbe, tokenizer: Tokenizer, count: int = 1000, seed: int = FIRST_TEST_SEED
) -> dict[str, float]:
    """The share of right answers to each caption question, for test captions."""
    batch = sample_probe_batch(tokenizer, count, torch.Generator().manual_seed(seed))
    answers = zip(split_by_question(probe(batch.ids), CAPTION_QUESTIONS), batch.answers.T, strict=True)
    shares = [(logits.argmax(1) == right).float().mean().item() for logits, right in answers]
    return dict(zip(CAPTION_QUESTIONS, shares, strict=True))


@torch.no_grad()
def transfer_weights(
    encoder: CLIPTextTransformer, tokenizer: Tokenizer, start: CLIPTextTransformer, known: Tokenizer
) -> FrozenReference:
    """Copy the weights of another text encoder, which may have another vocabulary or fewer layers.

    Embeddings are copied by token; a synonym begins as the word that it stands for. Additional layers are initialised
    so that they change nothing. Returns the result as the reference for further training.
    """
    end = "</w>"
    meant = {word + end: CAPTION_WORD[word] + end for word in CAPTION_WORD}
    pairs = [(i, known.token_to_id(meant.get(token, token))) for token, i in tokenizer.vocab.items()]
    here, there = zip(*((i, j) for i, j in pairs if j is not None), strict=True)
    embeddings = encoder.token_embedding.weight.clone()
    embeddings[list(here)] = start.token_embedding.weight[list(there)]
    encoder.load_state_dict(encoder.state_dict() | start.state_dict() | {"token_embedding.weight": embeddings})
    for layer in encoder.layers[start.config.layers :]:
        for name, weight in layer.named_parameters():
            if name.startswith(("attention.out", "contract")):  # the outputs of both residual branches
                nn.init.zeros_(weight)
    known_tokens = torch.zeros(len(embeddings), dtype=torch.bool)
    known_tokens[list(here)] = True
    return FrozenReference(deepcopy(encoder).requires_grad_(False), known_tokens)


def train_text_encoder(
    probe: CaptionProbe,
    tokenizer: Tokenizer,
    run: TrainingRun,
    batch: int = 128,
    reference: FrozenReference | None = None,
) -> CaptionProbe:
    """Train a text encoder with its probes.

    reference: the text encoder of an existing UNet, whose states are approximately kept. Returns the moving average.
    """

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        return probe.loss(sample_probe_batch(tokenizer, batch, generator), reference)

    run = run.of(batch=batch, scenes=scenes_fingerprint())
    average = train(probe, loss, Recipe(learning_rate=1e-3, warmup_steps=50), run)
    question, accuracy = min(probe_accuracy(average, tokenizer).items(), key=lambda item: item[1])
    run.report(f"caption probe: {accuracy:.1%} right answers to the hardest question, {question}")
    return average
