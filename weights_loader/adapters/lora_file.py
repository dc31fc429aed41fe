"""What a LoRA file changes, and with which of its tensors: decided from names and shapes alone.

The formats: diffusers and PEFT, with their older spellings; kohya, with or without convolutions; cloneofsimo. A key is
a layer's name in one of the spellings of `lora_names` and an ending that says which half of the change it is.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from minisd.errors import MismatchError
from minisd.models import CLIPTextTransformer, UNet
from weights_loader import detect
from weights_loader.adapters.lora_names import Target, spellings
from weights_loader.adapters.parts import FAMILIES, family_of_width
from weights_loader.build import SHOWN

Shapes = Mapping[str, tuple[int, ...]]

ENDINGS = {
    ".lora_down.weight": "down",  # kohya
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",  # PEFT
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",  # diffusers
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down",  # its old attention processors
    ".up.weight": "up",
    ":down": "down",  # cloneofsimo
    ":up": "up",
    ".alpha": "alpha",
}
PEFT_PREFIX = "base_model.model."
OTHERS = (  # other changes of weights, by what their tensors are called
    (r"hada_", "LoHa"),
    (r"lokr_", "LoKr"),
    (r"dora_scale|lora_magnitude_vector", "DoRA"),
    (r"lora_mid", "LoRA with a Tucker core (lora_mid)"),
    (r"oft_(blocks|diag|R)", "OFT"),
    (r"lora_embedding_[AB]", "LoRA of an embedding table"),
    (r"\.diff(_b)?$", "a full difference of weights"),
)
ADVICE = "minisd merges LoRA and LoCon; merge the adapter into a model with the program that made it"
CLONEOFSIMO_LAYERS = {"unet": {"CrossAttention", "Attention", "GEGLU"}, "text_encoder": {"CLIPAttention"}}


class Keys(NamedTuple):
    """The tensors of one layer's change, by their names in the file; alpha may be absent."""

    down: str
    up: str
    alpha: str | None


@dataclass(frozen=True)
class Plan:
    """`layers`: where each change goes and its tensors; `embeddings`: words that the file holds besides."""

    layers: dict[Target, Keys]
    embeddings: list[str]


def plan(shapes: Shapes, metadata: Mapping[str, str], networks: Mapping[str, nn.Module], path: Path) -> Plan:
    """Find the layer of every tensor. Raises MismatchError: another kind of file or family, keys that fit nowhere."""
    embeddings = [key for key in shapes if re.fullmatch("<.+>", key)]
    names = {key: _name(key, shapes) for key in shapes if key not in embeddings}
    _check_kind(names, path)
    _check_numbering(metadata, path)
    table = spellings(networks)
    found: dict[Target, dict[str, str]] = {}
    unknown, twice = [], []
    for key, name in names.items():
        match _halves(name, table):
            case []:
                unknown.append(key)
            case [(target, half), *_]:
                if half in found.setdefault(target, {}):
                    twice.append(key)
                found[target][half] = key
    if not found and not any("lora" in name for name in names.values()):
        _refuse_stranger(shapes, path)
    _check_family(names, shapes, networks, path)
    alone = [key for keys in found.values() for key in keys.values() if not {"down", "up"} <= keys.keys()]
    _complain(
        path, {"belong to no layer of the model": unknown, "name a layer again": twice, "lack their partner": alone}
    )
    return Plan({t: Keys(keys["down"], keys["up"], keys.get("alpha")) for t, keys in found.items()}, embeddings)


def _halves(name: str, table: Mapping[str, Target]) -> list[tuple[Target, str]]:
    """The layer and the half that a name means; empty where it means none."""
    parts = [(name.removesuffix(ending), half) for ending, half in ENDINGS.items() if name.endswith(ending)]
    return [(table[layer], half) for layer, half in parts if layer in table]


def _name(key: str, shapes: Shapes) -> str:
    """A key without what PEFT puts before it; of cloneofsimo's nameless list (up, down, up, ...) what it would be."""
    if not key.isdigit():
        return key.removeprefix(PEFT_PREFIX)
    network = "text_encoder" if _is_list_of_text_encoder(shapes) else "unet"
    return f"{network}:{int(key) // 2}:{('up', 'down')[int(key) % 2]}"


def _is_list_of_text_encoder(shapes: Shapes) -> bool:
    """Whether a nameless list is of the text encoder: there all layers are equal, in a UNet the fifth is wider."""
    return len({shape[:1] for name, shape in shapes.items() if name.isdigit() and int(name) % 2 == 0}) == 1


def _check_kind(keys: Iterable[str], path: Path) -> None:
    for pattern, kind in OTHERS:
        if (key := next((key for key in keys if re.search(pattern, key)), None)) is not None:
            raise MismatchError(f"{path} holds {kind} ({_quoted(key)}), expected a LoRA; {ADVICE}.")


def _refuse_stranger(shapes: Shapes, path: Path) -> None:
    what = detect.stranger(shapes)
    some = ", ".join(map(_quoted, list(shapes)[:3]))
    raise MismatchError(
        f"{path} is {what[0] if what else 'no LoRA that minisd knows'}: it holds {some}; "
        f"{what[1] if what else '`minisd inspect` shows what a model file is'}."
    )


def _check_numbering(metadata: Mapping[str, str], path: Path) -> None:
    """cloneofsimo's layers are numbers, which mean what the usual kinds of layers give, and nothing else."""
    for network, usual in CLONEOFSIMO_LAYERS.items():
        try:
            kinds = set(json.loads(metadata.get(network, "null")) or usual)
        except (ValueError, TypeError):
            continue  # not that format
        if kinds != usual:
            raise MismatchError(
                f"{path} numbers the layers of {', '.join(sorted(map(str, kinds)))}, expected those of "
                f"{', '.join(sorted(usual))}; convert the LoRA to kohya's or diffusers' names."
            )


def _check_family(names: Mapping[str, str], shapes: Shapes, networks: Mapping[str, nn.Module], path: Path) -> None:
    """The widths that the LoRA reads against the model's: to say which model it is for, not only which keys differ."""
    unet = networks["unet"]
    text = networks.get("text_encoder", networks.get("text_encoder_2"))  # SDXL's refiner has the second alone
    assert isinstance(unet, UNet)
    assert isinstance(text, CLIPTextTransformer)
    has = family_of_width(unet.config.context_width)
    reads = _width(names, shapes, r"attn2[._](processor\.)?to_[kv](_lora)?\.|^unet:6:")
    if reads is not None and reads != unet.config.context_width:
        raise _other_family(path, family_of_width(reads), reads, unet.config.context_width, has)
    if "text_encoder_2" not in networks and any(
        re.match(r"lora_te2_|text_encoder_2[.:]", name) for name in names.values()
    ):
        raise MismatchError(
            f"{path} is a LoRA for SDXL (it changes two text encoders), the model is for {has}; {_next(has)}."
        )
    width = _width(
        names, shapes, r"layers[._]\d+[._]self_attn[._](q_proj|to_q_lora)|^text_encoder:0:", not_in="te2_|_2\\."
    )
    if width is not None and width != text.config.width:
        raise _other_family(path, family_of_width(width), width, text.config.width, has)


def _width(names: Mapping[str, str], shapes: Shapes, pattern: str, not_in: str = r"\Z\A") -> int | None:
    """The width of what a kind of layer reads, from the first such tensor."""
    for key, name in names.items():
        is_down = any(half == "down" and name.endswith(ending) for ending, half in ENDINGS.items())
        if is_down and re.search(pattern, name) and not re.search(not_in, name) and len(shapes[key]) >= 2:
            return shapes[key][1]
    return None


def _other_family(path: Path, made_for: str, width: int, expected: int, has: str) -> MismatchError:
    return MismatchError(
        f"{path} is a LoRA for {made_for} (it reads text vectors of {width}), the model is for {has} ({expected}); "
        f"{_next(has)}."
    )


def _next(has: str) -> str:
    known = has in FAMILIES.values()
    return f"load it into such a model, or get a LoRA for {has if known else 'this one'}; nothing was changed"


def _complain(path: Path, problems: Mapping[str, list[str]]) -> None:
    told = []
    for what, keys in problems.items():
        some = ", ".join(map(_quoted, sorted(keys)[:SHOWN])) + (", ..." if len(keys) > SHOWN else "")
        told += [f"{len(keys)} keys {what}: {some}"] if keys else []
    if told:
        raise MismatchError(
            f"{path} does not fit; {'; '.join(told)}; use a LoRA made for this model, in the format of diffusers, "
            "PEFT, kohya or cloneofsimo; nothing was changed."
        )


def _quoted(key: str) -> str:
    """A key as messages quote it: those of LoRAs are long, and end in what matters."""
    return ascii(key if len(key) <= 200 else f"{key[:100]}…{key[-100:]}")
