"""The layers that a LoRA file changes, and the tensors of each change, from names and shapes alone.

The formats: diffusers and PEFT, with their older spellings; kohya, with or without convolutions; ComfyUI; cloneofsimo.
A key is the name of a layer in one of the spellings of `lora_names`, and an ending for the factor: down, up or alpha.
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
from weights_loader.adapters.lora_names import Target, spellings
from weights_loader.build import listed
from weights_loader.detect import FAMILIES, Shapes, foreign_format

ENDINGS = {
    ".lora_down.weight": "down",  # kohya
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",  # PEFT
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",  # diffusers
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down",  # old attention processors of diffusers
    ".up.weight": "up",
    ":down": "down",  # cloneofsimo
    ":up": "up",
    ".alpha": "alpha",
}
PEFT_PREFIX = re.compile(r"^((?:unet|text_encoder(?:_2)?)\.)?base_model\.model\.")
PEFT_ADAPTER = re.compile(r"\.(lora_[AB])(?:_\d+)?\.(\w[^.]*)\.weight$")  # the second group: the name of the adapter
WORDS = re.compile(r"(<.+>)|bundle_emb\.(.+?)\.(emb_params|string_to_param\.\*|clip_[lg])")  # beside a LoRA
UNSUPPORTED_ADAPTERS = (  # by the names of their tensors
    (r"hada_", "LoHa"),
    (r"lokr_", "LoKr"),
    (r"dora_scale|lora_magnitude_vector", "DoRA"),
    (r"lora_mid", "LoRA with a Tucker core (lora_mid)"),
    (r"oft_(blocks|diag|R)", "OFT"),
    (r"lora_embedding_[AB]", "LoRA of an embedding table"),
    (r"\.diff(_b)?$", "a full difference of weights"),
)
ADVICE = "minisd merges LoRA and LoCon; merge the adapter into a model with the program that made it"
USE_ANOTHER = "load it into a model of its family, or use another LoRA; nothing was changed"
CLONEOFSIMO_LAYERS = {"unet": {"CrossAttention", "Attention", "GEGLU"}, "text_encoder": {"CLIPAttention"}}


def plain_name(key: str) -> str:
    """A key without what PEFT adds to names: its prefix, and the name of the adapter before `weight`."""
    return PEFT_ADAPTER.sub(r".\1.weight", PEFT_PREFIX.sub(r"\1", key))


def bundled_words(names: Iterable[str]) -> dict[str, list[str]]:
    """The learned words in a LoRA file, each with the names of its tensors."""
    words: dict[str, list[str]] = {}
    for name in sorted(names):
        if (match := WORDS.fullmatch(name)) is not None:
            words.setdefault(match[1] or match[2], []).append(name)
    return words


class Keys(NamedTuple):
    """The names of the tensors of one change; alpha may be missing."""

    down: str
    up: str
    alpha: str | None


@dataclass(frozen=True)
class Plan:
    """`layers`: the changed layers and the tensors of each change; `embeddings`: words that the file also holds."""

    layers: dict[Target, Keys]
    embeddings: list[str]


def plan(shapes: Shapes, metadata: Mapping[str, str], networks: Mapping[str, nn.Module], path: Path) -> Plan:
    """Find the layer of every tensor. Raises MismatchError: another kind of file or family, keys that fit no layer."""
    words = bundled_words(shapes)
    names = {key: _name(key, shapes) for key in shapes if not WORDS.fullmatch(key)}
    _check_kind(names, path)
    _check_adapters(names, path)
    _check_numbering(metadata, path)
    table = spellings(networks)
    found: dict[Target, dict[str, str]] = {}
    unknown, repeated = [], []
    for key, name in names.items():
        match = _match(name, table)
        if match is None:
            unknown.append(key)
            continue
        target, factor = match
        if factor in found.setdefault(target, {}):
            repeated.append(key)
        found[target][factor] = key
    if not found and not any("lora" in name for name in names.values()):
        _refuse_other_file(shapes, path)
    _check_family(names, shapes, networks, path)
    incomplete = [key for keys in found.values() for key in keys.values() if not {"down", "up"} <= keys.keys()]
    _check_keys(
        {"fit no layer of the model": unknown, "repeat a layer": repeated, "lack their counterpart": incomplete}, path
    )
    return Plan({t: Keys(keys["down"], keys["up"], keys.get("alpha")) for t, keys in found.items()}, list(words))


def _match(name: str, table: Mapping[str, Target]) -> tuple[Target, str] | None:
    """The layer and the factor that a name stands for, or None."""
    for ending, factor in ENDINGS.items():
        layer = name.removesuffix(ending)
        if layer != name and layer in table:
            return table[layer], factor
    return None


def _name(key: str, shapes: Shapes) -> str:
    """A key's plain name; for an entry of cloneofsimo's list without names (up, down, up, ...) the name."""
    if not key.isdigit():
        return plain_name(key)
    network = "text_encoder" if _is_list_of_text_encoder(shapes) else "unet"
    return f"{network}:{int(key) // 2}:{('up', 'down')[int(key) % 2]}"


def _is_list_of_text_encoder(shapes: Shapes) -> bool:
    """Whether a list without names is of the text encoder, whose layers all have one width, unlike those of a UNet."""
    return len({shape[:1] for name, shape in shapes.items() if name.isdigit() and int(name) % 2 == 0}) == 1


def _check_kind(keys: Iterable[str], path: Path) -> None:
    for pattern, kind in UNSUPPORTED_ADAPTERS:
        if (key := next((key for key in keys if re.search(pattern, key)), None)) is not None:
            raise MismatchError(f"{path} holds {kind} ({_quoted(key)}), expected a LoRA; {ADVICE}.")


def _check_adapters(keys: Iterable[str], path: Path) -> None:
    """Refuse a file of several adapters, each with its own name."""
    adapters = sorted({match[2] for key in keys if (match := PEFT_ADAPTER.search(key))})
    if len(adapters) > 1:
        raise MismatchError(
            f"{path} holds {len(adapters)} adapters ({listed(list(map(_quoted, adapters)))}), expected one; save each "
            "in a file of its own."
        )


def _refuse_other_file(shapes: Shapes, path: Path) -> None:
    what, advice = foreign_format(shapes) or ("in no known format", "`minisd inspect` shows the format of a model")
    some = ", ".join(map(_quoted, list(shapes)[:3]))
    raise MismatchError(f"{path} is {what}, expected a LoRA; it holds {some}; {advice}.")


def _check_numbering(metadata: Mapping[str, str], path: Path) -> None:
    """cloneofsimo numbers the layers of certain classes; the numbers are known for the usual classes only."""
    for network, usual in CLONEOFSIMO_LAYERS.items():
        try:
            kinds = set(json.loads(metadata.get(network, "null")) or usual)
        except (ValueError, TypeError):
            continue  # another format
        if kinds != usual:
            raise MismatchError(
                f"{path} numbers the layers of {', '.join(sorted(map(str, kinds)))}, expected those of "
                f"{', '.join(sorted(usual))}; convert the LoRA to kohya's or diffusers' names."
            )


def _check_family(names: Mapping[str, str], shapes: Shapes, networks: Mapping[str, nn.Module], path: Path) -> None:
    """Compare the input widths of the LoRA and the model, to name the family that the LoRA is made for."""
    unet = networks["unet"]
    text = networks.get("text_encoder", networks.get("text_encoder_2"))  # SDXL's refiner has only the second
    assert isinstance(unet, UNet)
    assert isinstance(text, CLIPTextTransformer)
    family = _family(unet.config.context_width)
    context = _input_width(names, shapes, r"attn2[._](processor\.)?to_[kv](_lora)?\.|^unet:6:")
    if context is not None and context != unet.config.context_width:
        raise _other_family(path, context, unet.config.context_width, family)
    if "text_encoder_2" not in networks and any(
        re.match(r"lora_te2_|text_encoder_2[.:]", name) for name in names.values()
    ):
        raise MismatchError(
            f"{path} is a LoRA for SDXL (it changes two text encoders), expected one for {family}; {USE_ANOTHER}."
        )
    width = _input_width(
        names, shapes, r"layers[._]\d+[._]self_attn[._](q_proj|to_q_lora)|^text_encoder:0:", not_in="te2_|_2\\."
    )
    if width is not None and width != text.config.width:
        raise _other_family(path, width, text.config.width, family)


def _input_width(names: Mapping[str, str], shapes: Shapes, pattern: str, not_in: str = r"\Z\A") -> int | None:
    """The input width of the layers whose names match, from the first of them."""
    for key, name in names.items():
        is_down = any(factor == "down" and name.endswith(ending) for ending, factor in ENDINGS.items())
        if is_down and re.search(pattern, name) and not re.search(not_in, name) and len(shapes[key]) >= 2:
            return shapes[key][1]
    return None


def _family(width: int) -> str:
    return FAMILIES.get(width, f"models with text vectors of {width}")


def _other_family(path: Path, width: int, expected: int, family: str) -> MismatchError:
    return MismatchError(
        f"{path} is a LoRA for {_family(width)} (it reads text vectors of {width}), expected one for {family} "
        f"({expected}); {USE_ANOTHER}."
    )


def _check_keys(problems: Mapping[str, list[str]], path: Path) -> None:
    """Raise MismatchError that lists the keys of each problem."""
    found = [
        f"{len(keys)} keys {what}: {listed(list(map(_quoted, sorted(keys))))}"
        for what, keys in problems.items()
        if keys
    ]
    if found:
        raise MismatchError(
            f"{path} does not fit; {'; '.join(found)}; use a LoRA made for this model, in the format of diffusers, "
            "PEFT, kohya, ComfyUI or cloneofsimo; nothing was changed."
        )


def _quoted(key: str) -> str:
    """A key for error messages; long ones are cut in the middle, because both ends matter."""
    return ascii(key if len(key) <= 200 else f"{key[:100]}…{key[-100:]}")
