"""Random LoRAs for the reference's networks, written in every format; the reference applies them beside its layers."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Change(NamedTuple):
    """As trained: `down` and `up` of one layer, alpha or None for alpha = rank."""

    down: Tensor
    up: Tensor
    alpha: float | None


Changes = dict[str, dict[str, Change]]  # network -> the reference's module path -> change
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
PROCESSORS = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}


def is_attention(path: str, module: nn.Module) -> bool:
    return path.endswith(ATTENTION)


def is_matrix(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and ("attn" in path or "ff" in path or "mlp" in path)


def is_any(path: str, module: nn.Module) -> bool:
    return True


def draw(
    networks: Mapping[str, nn.Module],
    wanted: Callable[[str, nn.Module], bool] = is_attention,
    alpha: Callable[[int], float | None] = lambda rank: None,
    seed: int = 0,
    ranks: Sequence[int] = (1, 2, 3, 4),
) -> Changes:
    """A change for every wanted matrix and convolution, the ranks in turn."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    changes: Changes = {}
    for name, network in networks.items():
        layers = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        for i, (path, layer) in enumerate((path, m) for path, m in layers if wanted(path, m)):
            shape, rank = layer.weight.shape, ranks[i % len(ranks)]
            down = randn(rank, *shape[1:]) / shape[1:].numel() ** 0.5
            up = randn(shape[0], rank, *[1] * len(shape[2:])) / rank**0.5
            changes.setdefault(name, {})[path] = Change(0.6 * down, up, alpha(rank))
    return changes


def apply(networks: Mapping[str, nn.Module], changes: Changes, scale: float) -> list[Any]:
    """Compute each change beside its layer; returns handles that end it. Other arithmetic than merging."""

    def hook(change: Change) -> Callable[..., Tensor]:
        factor = scale * (1.0 if change.alpha is None else change.alpha / len(change.down))

        def add(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if isinstance(layer, nn.Conv2d):
                hidden = F.conv2d(args[0], change.down, stride=layer.stride, padding=layer.padding)
                return output + factor * F.conv2d(hidden, change.up)
            return output + factor * F.linear(F.linear(args[0], change.down), change.up)

        return add

    modules = {name: dict(network.named_modules()) for name, network in networks.items()}
    return [
        modules[name][path].register_forward_hook(hook(change))
        for name, paths in changes.items()
        for path, change in paths.items()
    ]


def full(name: str, path: str) -> str:
    """A module's official path: newer transformers left out `text_model.`, files have it."""
    with_prefix = name == "unet" or path.startswith(("text_model.", "text_projection"))
    return path if with_prefix else f"text_model.{path}"


def rows(changes: Changes) -> list[tuple[str, str, Change]]:
    return [(name, full(name, path), c) for name, paths in changes.items() for path, c in paths.items()]


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def write_peft(changes: Changes, path: Path) -> Path:
    """diffusers today: alpha in the header, one for all layers, others by name."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for name, module, change in rows(changes):
        tensors[f"{name}.{module}.lora_A.weight"] = change.down
        tensors[f"{name}.{module}.lora_B.weight"] = change.up
        settings |= {f"{name}.r": 4, f"{name}.lora_alpha": 4, f"{name}.use_dora": False}
        settings.setdefault(f"{name}.target_modules", []).append(module)
        settings.setdefault(f"{name}.rank_pattern", {})[module] = len(change.down)
        settings.setdefault(f"{name}.alpha_pattern", {})[module] = alpha_of(change)
    return save(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})


def write_named_adapter(changes: Changes, path: Path, a: str = "A.style", b: str = "B.style") -> Path:
    """PEFT's own state dict of networks in a pipeline: its prefix, and the adapter's name. No alpha."""
    tensors = {}
    for name, module, change in rows(changes):
        stem = f"{name}.base_model.model.{module}.lora_"
        tensors |= {f"{stem}{a}.weight": change.down, f"{stem}{b}.weight": change.up}
    return save(tensors, path)


def write_comfyui(changes: Changes, path: Path, names: Mapping[str, str], prefix: str = "diffusion_model.") -> Path:
    """`names`: the original names of the UNet's modules by diffusers'. Layers without an original name are left out."""
    fronts = {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
    }
    tensors = {}
    for name, module, change in rows(changes):
        stem = prefix + names[module] if name == "unet" else fronts[name] + module
        tensors |= {f"{stem}.lora_down.weight": change.down, f"{stem}.lora_up.weight": change.up}
        if change.alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(change.alpha)
    return save(tensors, path)


def write_diffusers(changes: Changes, path: Path) -> Path:
    """2023: `.lora.down` in the UNet, `.lora_linear_layer.down` in text encoders, alpha as tensors."""
    tensors = {}
    for name, module, change in rows(changes):
        part = "lora" if name == "unet" else "lora_linear_layer"
        tensors[f"{name}.{module}.{part}.down.weight"] = change.down
        tensors[f"{name}.{module}.{part}.up.weight"] = change.up
        if change.alpha is not None:
            tensors[f"{name}.{module}.alpha"] = torch.tensor(change.alpha)
    return save(tensors, path)


def write_processors(changes: Changes, path: Path, prefix: str = "unet.") -> Path:
    """Early 2023: attention processors; the oldest without the network's name. No alpha."""
    tensors = {}
    for name, module, change in rows(changes):
        last = next(each for each in ATTENTION if module.endswith(each))
        layer, _ = module.rsplit(f".{last}", 1)
        if name == "unet":
            stem = f"{prefix}{layer}.processor.{PROCESSORS[last]}"
        else:
            stem = f"{name}.{layer}.to_{last.split('_')[0]}_lora"
        tensors |= {f"{stem}.down.weight": change.down, f"{stem}.up.weight": change.up}
    return save(tensors, path)


def write_oldest(changes: Changes, path: Path) -> Path:
    return write_processors({"unet": changes["unet"]}, path, prefix="")


def write_kohya(changes: Changes, path: Path, names: Mapping[str, str] | None = None) -> Path:
    """`names`: other module paths of the UNet (sgm's) by diffusers'."""
    two = "text_encoder_2" in changes
    fronts = {"unet": "lora_unet", "text_encoder": "lora_te1" if two else "lora_te", "text_encoder_2": "lora_te2"}
    tensors = {}
    for name, module, change in rows(changes):
        module = (names or {}).get(module, module) if name == "unet" else module
        stem = f"{fronts[name]}_{module}".replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": change.down, f"{stem}.lora_up.weight": change.up}
        if change.alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(change.alpha)
    return save(tensors, path, {"ss_network_module": "networks.lora"})


def write_peft_folder(changes: Changes, folder: Path, **settings: Any) -> Path:
    """PEFT's save_pretrained of the one network in `changes`."""
    tensors = {}
    folder.mkdir()
    for _, module, change in rows(changes):
        tensors[f"base_model.model.{module}.lora_A.weight"] = change.down
        tensors[f"base_model.model.{module}.lora_B.weight"] = change.up
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, **settings}))
    save(tensors, folder / "adapter_model.safetensors")
    return folder


def cloneofsimo_order(changes: Changes) -> dict[str, list[Change]]:
    """The order in which that trainer walked through diffusers 0.10: down, up, middle; text layers k, v, q, out."""
    parts = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj"]
    parts += [part.replace("attn1", "attn2") for part in parts[:4]]

    def place(path: str) -> tuple:
        way, rest = path.split("_", 1)
        numbers = [int(n) for n in rest.split(".") if n.isdigit()][: 3 if way != "mid" else 2]
        return ["down", "up", "mid"].index(way), numbers, next(i for i, p in enumerate(parts) if path.endswith(p))

    def text_place(path: str) -> tuple:
        last = ["k_proj", "v_proj", "q_proj", "out_proj"].index(path.rsplit(".", 1)[1])
        return next(int(n) for n in path.split(".") if n.isdigit()), last

    keys = {"unet": place, "text_encoder": text_place}
    return {name: [c[path] for path in sorted(c, key=keys[name])] for name, c in changes.items()}


def is_cloneofsimo(path: str, module: nn.Module) -> bool:
    return is_attention(path, module) or path.endswith("ff.net.0.proj")


def write_cloneofsimo(changes: Changes, path: Path, words: Mapping[str, Tensor] | None = None) -> Path:
    tensors = dict(words or {})
    metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]', "text_encoder": '["CLIPAttention"]'}
    metadata |= dict.fromkeys(tensors, "<embed>")
    for name, ordered in cloneofsimo_order(changes).items():
        for i, change in enumerate(ordered):
            tensors |= {f"{name}:{i}:up": change.up, f"{name}:{i}:down": change.down}
            metadata[f"{name}:{i}:rank"] = str(len(change.down))
    return save(tensors, path, metadata)


def write_list(changes: Changes, path: Path) -> Path:
    """The legacy file of one network: up, down, up, down, ..."""
    (ordered,) = cloneofsimo_order(changes).values()
    torch.save([tensor for change in ordered for tensor in (change.up, change.down)], path)
    return path


def alpha_of(change: Change) -> float:
    return float(len(change.down)) if change.alpha is None else change.alpha
