"""What a file of an adapter is, by the names and shapes of its tensors alone: format, rank or vectors, family."""

import re
from typing import NamedTuple

from weights_loader.adapters.lora_file import ENDINGS, bundled_words, plain_name
from weights_loader.detect import FAMILIES, Shapes

LORA_FORMATS = (  # by a pattern that one of the names matches
    (r"^lora_(unet|te\d?)_", "kohya"),
    (r"^(diffusion_model|text_encoders)\..+\.lora_", "ComfyUI"),
    (r"\.lora_[AB]\b", "PEFT"),
    (r"^(unet|text_encoder):\d+:|^\d+$", "cloneofsimo"),
    (r"[._]lora[._]|_lora\.|lora_linear_layer", "diffusers"),
)
CROSS_ATTENTION = r"attn2[._](processor[._])?to_[kv](_lora)?[._]|^unet:6:"  # its input is as wide as the text states
SELF_ATTENTION = r"self_attn[._](q_proj|to_q_lora)|^text_encoder:0:"


class Description(NamedTuple):
    """One line on the format, one on the family; `kind` is "LoRA" or "embedding"."""

    kind: str
    layout: str
    family: str


def describe(shapes: Shapes) -> Description | None:
    """The description of an adapter; None for a file of another kind."""
    for pattern, name in LORA_FORMATS:
        if any(re.search(pattern, key) for key in shapes):
            return _describe_lora(shapes, name)
    return _describe_embedding(shapes)


def _describe_lora(shapes: Shapes, name: str) -> Description | None:
    downs = {key: shape for key, shape in shapes.items() if _is_down(key) and len(shape) >= 2}
    ranks = sorted({shape[0] for shape in downs.values()})
    if not ranks:
        return None
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    widths = [
        downs[key][1] for pattern in (CROSS_ATTENTION, SELF_ATTENTION) for key in downs if re.search(pattern, key)
    ]
    words = "".join(f", and the word {word}" for word in bundled_words(shapes))
    layout = f"a LoRA in the format of {name}, {rank}, {len(downs)} layers{words}"
    return Description("LoRA", layout, _family(widths[:1]))


def _is_down(key: str) -> bool:
    if key.isdigit():  # cloneofsimo's list without names: up, down, up, ...
        return int(key) % 2 == 1
    return any(factor == "down" and plain_name(key).endswith(ending) for ending, factor in ENDINGS.items())


def _describe_embedding(shapes: Shapes) -> Description | None:
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith("string_to_token.")}
    known = [
        key for key in shapes if re.search(r"^(string_to_param\.|emb_params$|clip_[lg]$|text_encoders_\d$|<.+>$)", key)
    ]
    if len(shapes) == 1 and not known:
        known = list(shapes)  # a word without brackets
    if not known or len(known) != len(shapes) or not all(len(shapes[key]) in (1, 2) for key in known):
        return None
    first = known[0]
    is_xl = first.startswith(("clip_", "text_encoders_"))
    name = "SDXL" if is_xl else "A1111" if first.startswith(("string_to_param.", "emb_params")) else "diffusers"
    counts = {key: shapes[key][0] if len(shapes[key]) == 2 else 1 for key in known}
    vectors = counts[first] if is_xl else sum(counts.values())
    widths = [shapes[key][-1] for key in known]
    plural = "s" * (vectors > 1)
    words = f", {', '.join(known)}" if name == "diffusers" else ""
    layout = f"a textual-inversion embedding in the format of {name}, {vectors} vector{plural}{words}"
    return Description("embedding", layout, _family([sum(widths)] if is_xl else widths[:1]))


def _family(widths: list[int]) -> str:
    """The family by the width of the text states that an adapter reads, or replaces."""
    if not widths:
        return "unknown (the tensors do not show it)"
    return FAMILIES.get(widths[0], f"models with text vectors of {widths[0]}")
