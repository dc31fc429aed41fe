"""Rename rules: which tensor of a checkpoint is which parameter of minisd.

One module for each layout. Each computes a table {our module: their module} from the config alone; parameters are named
after their modules. One stored tensor is one parameter, with three exceptions, all of them views: OpenCLIP stacks q, k
and v and stores one matrix transposed, and the original autoencoder stores its attention as 1x1 convolutions. All rules
work in both directions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSource:
    """Where a parameter of ours is stored: the name of their tensor, and which view of it is the parameter."""

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


def write(sources: Mapping[str, TensorSource], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters -> their tensors: the inverse of reading every source."""
    stored: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for name, source in sources.items():
        tensor = ours[name]
        if source.third is not None:
            thirds.setdefault(source.name, [tensor] * 3)[source.third] = tensor
        elif source.transposed:
            stored[source.name] = tensor.T
        elif source.convolution:
            stored[source.name] = tensor[:, :, None, None]
        else:
            stored[source.name] = tensor
    return stored | {name: torch.cat(parts) for name, parts in thirds.items()}


def expand(modules: Mapping[str, str], parameters: Iterable[str]) -> dict[str, TensorSource]:
    """{our module: their module} -> {our parameter: its source}, for each of the given parameters."""
    sources = {}
    for parameter in parameters:
        module, kind = parameter.rsplit(".", 1)
        sources[parameter] = TensorSource(f"{modules[module]}.{kind}")
    return sources
