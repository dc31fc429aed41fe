"""Rename rules: which tensor of a checkpoint is which parameter of ours.

One module a layout. Each computes, from the config alone, a table {our module: their module}; parameters follow their
modules. One tensor is one parameter, up to a view: OpenCLIP stacks q, k and v, stores one matrix transposed, and the
original autoencoder writes its attention as 1x1 convolutions. All rules run in both directions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a parameter of ours is found: their tensor's name and how to look at it."""

    name: str
    third: int | None = None  # 0, 1, 2: which third of the rows
    transposed: bool = False
    convolution: bool = False  # stored as (out, in, 1, 1)

    def shape(self, ours: torch.Size) -> tuple[int, ...]:
        """The shape that the stored tensor must have for a parameter of shape `ours`."""
        if self.transposed:
            return tuple(reversed(ours))
        if self.convolution:
            return (*ours, 1, 1)
        if self.third is not None:
            return (3 * ours[0], *ours[1:])
        return tuple(ours)

    def read(self, stored: Tensor) -> Tensor:
        """Their tensor -> our parameter, as a view."""
        if self.transposed:
            return stored.T
        if self.convolution:
            return stored[:, :, 0, 0]
        if self.third is not None:
            return stored.chunk(3)[self.third]
        return stored


def write(places: Mapping[str, Place], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters -> their tensors: the inverse of reading each place."""
    stored: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for name, place in places.items():
        tensor = ours[name]
        if place.third is not None:
            thirds.setdefault(place.name, [tensor] * 3)[place.third] = tensor
        elif place.transposed:
            stored[place.name] = tensor.T
        elif place.convolution:
            stored[place.name] = tensor[:, :, None, None]
        else:
            stored[place.name] = tensor
    return stored | {name: torch.cat(parts) for name, parts in thirds.items()}


def expand(modules: Mapping[str, str], parameters: Iterable[str]) -> dict[str, Place]:
    """{our module: their module} -> {our parameter: its place}, for each parameter name of ours."""
    places = {}
    for parameter in parameters:
        module, kind = parameter.rsplit(".", 1)
        places[parameter] = Place(f"{modules[module]}.{kind}")
    return places
