"""The text transformer: what changes in the text states when one word of the prompt changes."""

from contextlib import ExitStack
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from minisd._internal import validation
from minisd.demos.charts import draw_cells
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import pictures
from minisd.demos.inputs import PROMPT, check_task, steps_of
from minisd.errors import InputError
from minisd.models import CLIPTextTransformer
from minisd.pipeline import StableDiffusion

MOST_TOKENS = 14  # that are shown


def show(
    sd: StableDiffusion,
    prompt: str = PROMPT,
    other: str = "a red circle above a green square",
    seed: int = 3,
    num_inference_steps: int | None = None,
) -> Demo:
    """Two prompts, layer by layer: how far their states are apart, which token reads which, and both images.

    Of SDXL's two text encoders the first one is shown. Raises InputError, also for equal prompts.
    """
    check_task(sd, "text")
    for name, text in (("prompt", prompt), ("other", other)):
        validation.text(text, name)
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    tokenizer, encoder = sd.text_parts[0]
    encoding = tokenizer.encode([prompt, other])
    if torch.equal(*encoding.ids):
        raise InputError("prompt and other have the same tokens, expected two different prompts; change a word.")
    names = [[_name(sd, token) for token in row.tolist()] for row in encoding.ids]
    used = min(int(encoding.attention_mask.sum(1).max()), MOST_TOKENS)
    layers, attention = _states(encoder, encoding.ids)
    changes = [_change(states)[:used] for states in layers.values()]
    first = next(k for k in range(encoding.ids.shape[1]) if encoding.ids[0, k] != encoding.ids[1, k])
    same = len(list(takewhile(lambda change: change == 0, _change(layers["states"]).tolist())))
    labels = [a if a == b else f"{a}/{b}" for a, b in zip(names[0][:used], names[1][:used], strict=True)]
    spread = draw_cells([row.tolist() for row in changes], list(layers), labels, max(float(c.max()) for c in changes))
    own = min(int(encoding.attention_mask[0].sum()), MOST_TOKENS)
    looks = [[float(attention[q, k]) if k <= q else None for k in range(own)] for q in range(own)]
    reads = draw_cells(looks, names[0][:own], names[0][:own], 1.0)
    images = torch.cat([
        sd(each, seed=seed, num_inference_steps=steps, output_type="pt").images for each in (prompt, other)
    ])  # fmt: skip
    drawn = [
        Panel(each, image, f"what the model draws for {each!r}")
        for each, image in zip((prompt, other), pictures(images), strict=True)
    ]
    table = Table(
        ("slot", "token", "token of other", "change of the vector", "change of the state"),
        tuple((k, names[0][k], names[1][k], float(changes[0][k]), float(changes[-1][k])) for k in range(used)),
    )
    sentences = (
        f"The prompts differ first in slot {first}: {names[0][first]!r} became {names[1][first]!r}.",
        f"The first {same} text states are equal to the last bit, because a token reads only itself and those before "
        f"it; from slot {first} on {_share(layers['states'], first)} states differ.",
    )
    return Demo(
        "Text transformer: one word changes, and every state behind it",
        sentences,
        (
            row_of(
                "Change of each token's vector, layer by layer, in parts of its length (darker: more)",
                [Panel("rows: layers; columns: tokens", spread, "a table of changes: 0 before the changed word")],
            ),
            row_of(
                "Which token (row) reads which (column): attention, mean over heads and layers",
                [Panel("each row sums to 1", reads, "a table of attention weights below its diagonal")],
            ),
            row_of(f"The images, both from the noise of seed {seed}", drawn),
        ),
        table,
        ("minisd/models/clip.py",),
        "11",
    )


@torch.no_grad()
def _states(encoder: CLIPTextTransformer, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The vectors (2, L, width) after each part of the encoder, and the attention (L, L) of the first prompt."""
    weights: list[Tensor] = []
    ids = ids.to(encoder.token_embedding.weight.device)
    with ExitStack() as undo:
        for layer in encoder.layers:
            attention: Any = layer.attention
            undo.callback(setattr, attention, "on_weights", attention.on_weights)
            attention.on_weights = weights.append
        x = encoder.embed(ids)
        found = {"vectors": x}
        for k, layer in enumerate(encoder.layers):
            found[f"layer {k + 1}"] = x = layer(x)
    found["states"] = encoder(ids)
    return found, torch.stack([each[0].float().mean(0) for each in weights]).mean(0)


def _change(states: Tensor) -> Tensor:
    """How far two prompts' vectors (2, L, width) are apart, in parts of the first one's length: (L,)."""
    first, second = states.float()
    return ((first - second).norm(dim=-1) / first.norm(dim=-1)).cpu()


def _share(states: Tensor, first: int) -> str:
    later = _change(states)[first:]
    return f"{int((later > 0).sum())} of {len(later)}"


def _name(sd: StableDiffusion, token: int) -> str:
    tokenizer = sd.tokenizer
    names = {tokenizer.bos_id: "start", tokenizer.eos_id: "end"}
    return names.get(token, tokenizer.id_to_token(token).removesuffix("</w>"))
