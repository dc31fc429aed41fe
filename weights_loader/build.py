"""Build a network from a file: on the meta device, strictly, by assigning the file's own tensors.

Everything is decided from names and shapes before the first byte of a weight is read: a network is complete, or there
is one error that lists what is wrong. Tensors stay views of the mapped file where dtype and device allow.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.errors import MismatchError
from weights_loader.names import Place

SHOWN = 10  # names in an error message

Network = TypeVar("Network", bound=nn.Module)


class Tensors(Protocol):
    """Tensors by name, shapes known beforehand: a weight file, several shards, or a dictionary."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, by name."""

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""


class Prefixed:
    """The tensors whose names begin with a prefix, without it."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix
        self.shapes = {n.removeprefix(prefix): s for n, s in tensors.shapes.items() if n.startswith(prefix)}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self._tensors.tensor(self._prefix + name)


class Merged:
    """The tensors of several files as one."""

    def __init__(self, parts: Iterable[Tensors]) -> None:
        self._where = {name: part for part in parts for name in part.shapes}
        self.shapes = {name: part.shapes[name] for name, part in self._where.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self._where[name].tensor(name)


class NoInitialisation(TorchFunctionMode):
    """Skips torch.nn.init: on the meta device it draws nothing, but imports the whole of torch._dynamo to do so."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every torch function passes through here while the mode is on."""
        kwargs = {} if kwargs is None else kwargs
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(
    blank: Callable[[], Network],
    places: Callable[[list[str]], Mapping[str, Place]],
    tensors: Tensors,
    ignorable: Callable[[str], bool],
    what: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Network:
    """The network that `blank` makes, filled: every parameter from its place, every tensor used or ignorable.

    Raises MismatchError that lists missing, unexpected and misshapen tensors of `what`.
    """
    with torch.device("meta"), NoInitialisation():
        network = blank()
    shapes = {name: parameter.shape for name, parameter in network.state_dict().items()}
    where = places(list(shapes))
    _check(where, shapes, tensors.shapes, ignorable, what)
    state = {}
    for name, place in where.items():
        tensor = place.read(tensors.tensor(place.name))
        if not tensor.is_floating_point():
            raise MismatchError(f"{what}: {place.name} holds {tensor.dtype}, expected floating-point weights.")
        state[name] = tensor.to(device=device, dtype=dtype)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def _check(
    where: Mapping[str, Place],
    shapes: Mapping[str, torch.Size],
    stored: Mapping[str, tuple[int, ...]],
    ignorable: Callable[[str], bool],
    what: str,
) -> None:
    used = {place.name for place in where.values()}
    missing = sorted(used - set(stored))
    unexpected = sorted(name for name in set(stored) - used if not ignorable(name))
    misshapen = sorted(
        {
            f"{place.name} {tuple(stored[place.name])} (expected {place.shape(shapes[name])})"
            for name, place in where.items()
            if place.name in stored and tuple(stored[place.name]) != place.shape(shapes[name])
        }
    )
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise MismatchError(
            f"{what} does not fit its network; {'; '.join(problems)}; nothing was loaded, "
            "`minisd inspect` shows what the file holds."
        )
