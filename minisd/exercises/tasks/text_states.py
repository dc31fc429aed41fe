"""The CLIP text transformer, from its parts."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minisd.configs import CLIPTextConfig
from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import generator, random_weights
from minisd.models import CLIPTextTransformer

TASK = """
The forward pass of CLIP's text encoder, from its parts: encoder.token_embedding (ids to vectors),
encoder.position_embedding.weight (max_length, width), encoder.layers in order, encoder.final_norm.

ids (B, L), L <= max_length -> text states (B, L, width).
"""


def text_states(encoder: CLIPTextTransformer, ids: Tensor) -> Tensor:
    x = encoder.token_embedding(ids) + encoder.position_embedding.weight[: ids.shape[1]]
    for layer in encoder.layers:
        x = layer(x)
    return encoder.final_norm(x)


def cases() -> list[Case]:
    config = CLIPTextConfig(
        vocab_size=50, width=12, layers=3, heads=2, mlp_width=24, max_length=9, activation="quick_gelu", end_id=49
    )
    with random_weights(0):
        encoder = CLIPTextTransformer(config).requires_grad_(False)
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(50, (2, 9), generator=generator(1))
    return [Case("full length", (encoder, ids)), Case("shorter texts", (encoder, ids[:, :5]))]


def _layers(encoder: CLIPTextTransformer, x: Tensor, count: int | None = None) -> Tensor:
    for layer in list(encoder.layers)[:count]:
        x = layer(x)
    return x


def _no_norm(encoder: CLIPTextTransformer, ids: Tensor) -> Tensor:
    return _layers(encoder, encoder.embed(ids))


def _no_positions(encoder: CLIPTextTransformer, ids: Tensor) -> Tensor:
    return encoder.final_norm(_layers(encoder, encoder.token_embedding(ids)))


def _last_positions(encoder: CLIPTextTransformer, ids: Tensor) -> Tensor:
    positions = encoder.position_embedding.weight.roll(-1, 0)[: ids.shape[1]]
    return encoder.final_norm(_layers(encoder, encoder.token_embedding(ids) + positions))


def _one_layer_less(encoder: CLIPTextTransformer, ids: Tensor) -> Tensor:
    return encoder.final_norm(_layers(encoder, encoder.embed(ids), -1))


def _norm_in_between(encoder: CLIPTextTransformer, ids: Tensor) -> Tensor:
    x = encoder.embed(ids)
    for layer in encoder.layers:
        x = encoder.final_norm(layer(x))
    return x


def _by_ids_of_positions(encoder: CLIPTextTransformer, ids: Tensor) -> Tensor:
    positions = encoder.position_embedding(torch.arange(ids.shape[1], device=ids.device))
    return encoder.final_norm(_layers(encoder, positions[None] + encoder.token_embedding.weight[ids]))


def install(solution: Solution) -> AbstractContextManager[None]:
    return replaced(CLIPTextTransformer, "forward", lambda self, ids: solution(self, ids))


EXERCISE = Exercise(
    number=8,
    name="text_states",
    title="The text encoder",
    level=2,
    minutes=15,
    notebook="11",
    task=TASK,
    reference=text_states,
    answer=CLIPTextTransformer,
    cases=cases,
    mistakes=(
        Mistake("the final norm is left out", _no_norm),
        Mistake("the positions are not added, so the encoder cannot know the order of words", _no_positions),
        Mistake("the positions begin at 1; the first token has position 0", _last_positions),
        Mistake("the last layer is left out; this is clip skip, which SD 1 does not use", _one_layer_less),
        Mistake("the final norm is applied after every layer; expected once, at the end", _norm_in_between),
    ),
    hints=(
        "Four steps: two tables are added (which word, and where it is), then the layers, then the final norm, once.",
        "encoder.layers can be iterated like a list; each layer takes and gives (B, L, width).",
        "A text of L tokens uses the first L rows of the positions.",
    ),
    install=install,
    variants=(_by_ids_of_positions,),
    forbidden=tuple(f"minisd.models.CLIPTextTransformer.{name}" for name in ("forward", "transform")),
)
