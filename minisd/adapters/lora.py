"""LoRA: a trained change of low rank is added to the weights of some layers (Hu et al. 2021).

W' = W + scale (alpha / rank) up down. The change is merged into the weights, so a step costs no more than before. The
original weights are kept, and every merge starts from them, so removing, rescaling and combining LoRAs adds no rounding
errors. A merge gives each layer a new tensor: mapped weight files do not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from minisd._internal.validation import real_number
from minisd.errors import InputError, NumericalError

Layer = nn.Linear | nn.Conv2d
LARGEST_SCALE = 1000.0


@dataclass(frozen=True)
class LowRank:
    """The change of one layer: factor * up @ down.

    down: (rank, in) or, for a convolution, (rank, in, kernel, kernel), with the layer's stride and padding;
    up: (out, rank) or (out, rank, 1, 1). factor: usually alpha / rank.
    """

    down: Tensor
    up: Tensor
    factor: float = 1.0

    def fits(self, layer: Layer) -> bool:
        """Whether the change has the shape of the layer's weight; a 1x1 convolution counts as a matrix."""
        rank, weight = self.down.shape[0], layer.weight.shape
        return _trimmed(self.down.shape) == (rank, *_trimmed(weight)[1:]) and _trimmed(self.up.shape) == (
            weight[0],
            rank,
        )

    def delta(self, like: Tensor, scale: float = 1.0) -> Tensor:
        """scale * factor * up @ down, with the shape, device and dtype of `like`."""
        up, down = (part.to(like.device, like.dtype).flatten(1) for part in (self.up, self.down))
        return ((scale * self.factor * up) @ down).reshape(like.shape)


class LowRankChanges(nn.Module):
    """Trainable changes of some weights of a network; they start at zero, so the network is unchanged at first."""

    def __init__(self, network: nn.Module, names: Sequence[str], rank: int) -> None:
        super().__init__()
        self.names = list(names)
        self.shapes = [network.get_parameter(name).shape for name in self.names]
        widths = [(shape[0], shape[1:].numel()) for shape in self.shapes]
        self.down = nn.ParameterList(torch.randn(rank, width) / width**0.5 for _, width in widths)
        self.up = nn.ParameterList(torch.zeros(width, rank) for width, _ in widths)

    @property
    def parts(self) -> dict[str, LowRank]:
        """The change of each weight, by name."""
        changes = zip(self.names, self.shapes, self.down, self.up, strict=True)
        return {
            name: LowRank(down.detach().unflatten(1, shape[1:]), up.detach().view(*up.shape, *(1 for _ in shape[2:])))
            for name, shape, down, up in changes
        }

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The changed weights of the network, by name."""
        return {
            name: network.get_parameter(name) + (up @ down).view_as(network.get_parameter(name))
            for name, up, down in zip(self.names, self.up, self.down, strict=True)
        }


def by_layer(network: nn.Module, parts: Mapping[str, LowRank]) -> dict[Layer, LowRank]:
    """Changes by the names of weights -> changes by the layers of these weights, as `Lora` takes them."""
    layers: dict[Layer, LowRank] = {}
    for name, part in parts.items():
        layer = network.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        layers[layer] = part
    return layers


class Lora:
    """A LoRA merged into a model: `scale` sets its strength, 0 for none; `remove()` removes it.

    Several LoRAs can be merged into one model and removed in any order; removing the last one restores the original
    weights, bit for bit. Remove LoRAs before you change the weights in another way (training, load_state_dict): the
    next merge would undo that change.
    """

    def __init__(self, parts: Mapping[Layer, LowRank], scale: float = 1.0) -> None:
        """Merge `parts`, the change of each layer. Raises InputError (scale), NumericalError (weights overflow)."""
        self._parts, self._key, self._removed = dict(parts), object(), False
        self.scale = scale

    @property
    def scale(self) -> float:
        """The strength of the LoRA: 1 is as trained, 0 none."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        scale = real_number(value, "scale", -LARGEST_SCALE, LARGEST_SCALE)
        if self._removed:
            raise InputError(f"the scale of a removed LoRA cannot be {scale:g}; load it again.")
        _merge(self._parts, self._key, scale)
        self._scale = scale

    @property
    def layers(self) -> int:
        """The number of layers that it changes."""
        return len(self._parts)

    def remove(self) -> None:
        """Remove the LoRA from the weights; a second call does nothing."""
        if not self._removed:
            _merge(self._parts, self._key, None)
            self._removed = True

    def __repr__(self) -> str:
        state = "removed" if self._removed else f"scale {self._scale:g}"
        return f"Lora({self.layers} layers, {state})"


class _Merged(NamedTuple):
    """A changed layer: its original weight, and the change and scale of each LoRA."""

    base: Tensor
    active: dict[object, tuple[LowRank, float]]

    def weight(self, like: Tensor) -> Tensor:
        """The merged weight, with the device and dtype of `like`, the layer's current weight."""
        changes = [(part, scale) for part, scale in self.active.values() if scale != 0]
        if not changes:
            return self.base.to(like.device, like.dtype)
        base = self.base.to(like.device, torch.promote_types(self.base.dtype, torch.float32))
        total, *others = (part.delta(base, scale) for part, scale in changes)
        for each in (*others, base):
            total += each
        return total.to(like.dtype)


# The changed layers, while they exist. Values must not reference the layer, or it would never be garbage-collected.
_MERGED: WeakKeyDictionary[nn.Module, _Merged] = WeakKeyDictionary()


def _merge(parts: Mapping[Layer, LowRank], key: object, scale: float | None) -> None:
    """Merge the LoRA `key` with a scale, or remove it (None); on an error no layer is changed."""
    staged = []
    with torch.inference_mode(False), torch.no_grad():  # inference tensors could never be trained
        for layer, part in parts.items():
            kept = _MERGED.get(layer, _Merged(layer.weight.data, {}))
            active = {other: change for other, change in kept.active.items() if other is not key or scale is not None}
            if scale is not None:
                active[key] = (part, scale)
            merged = _Merged(kept.base, active)
            weight = merged.weight(layer.weight.data)
            # the extremes are finite if all numbers are; isfinite(weight) is ten times slower
            if active and not torch.stack(torch.aminmax(weight)).isfinite().all():
                raise NumericalError(
                    f"a weight of shape {tuple(weight.shape)} is not finite in {weight.dtype} with this LoRA at scale "
                    f"{scale}; try a smaller scale or load the model in float32; nothing was changed."
                )
            staged.append((layer, merged, weight))
        for layer, merged, weight in staged:
            layer.weight.data = weight
            if merged.active:
                _MERGED[layer] = merged
            else:
                _MERGED.pop(layer, None)


def _trimmed(shape: torch.Size) -> tuple[int, ...]:
    """A weight's shape without a kernel of 1x1."""
    return tuple(shape[:2]) if all(n == 1 for n in shape[2:]) else tuple(shape)
