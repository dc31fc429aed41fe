"""Build a network from stored tensors: on the meta device, strictly, by assigning the tensors of the file.

Names and shapes are checked before the first byte of a weight is read. A network is complete, or one error lists all
differences. Tensors stay views of the mapped file where dtype and device allow.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.errors import MismatchError
from weights_loader.devices import stored_dtype
from weights_loader.names import TensorSource

MAX_NAMES_SHOWN = 10  # in an error message
CHARACTERS_OF_NAMES = 300
FORGET_AFTER = 2**26  # bytes that were converted or moved

Network = TypeVar("Network", bound=nn.Module)


class Tensors(Protocol):
    """Tensors by name, with shapes known before reading: a weight file, several shards, or a part of a file."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""

    def forget(self) -> None:
        """Free the memory of what was read."""


class Prefixed:
    """The tensors whose names begin with a prefix, by their names without it."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix
        self.shapes = {n.removeprefix(prefix): s for n, s in tensors.shapes.items() if n.startswith(prefix)}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self._tensors.tensor(self._prefix + name)

    def forget(self) -> None:
        """Free the memory of what was read."""
        self._tensors.forget()


class Merged:
    """The tensors of several files as one."""

    def __init__(self, files: Iterable[Tensors]) -> None:
        self._file_of = {name: file for file in files for name in file.shapes}
        self.shapes = {name: file.shapes[name] for name, file in self._file_of.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self._file_of[name].tensor(name)

    def forget(self) -> None:
        """Free the memory of what was read."""
        for file in set(self._file_of.values()):
            file.forget()


class NoInitialisation(TorchFunctionMode):
    """Skips torch.nn.init, which has no effect on the meta device but imports the whole of torch._dynamo there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called in place of every torch function while the mode is on."""
        kwargs = {} if kwargs is None else kwargs
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_blocks(blocks: int, tensors: Tensors, what: str) -> None:
    """Refuse a config of more blocks than the file has tensors, before anything is built, which takes time for each.

    Raises MismatchError. build() compares everything else.
    """
    if blocks > len(tensors.shapes):
        raise MismatchError(
            f"{what}: the config describes {blocks:,} blocks of layers and the file holds {len(tensors.shapes):,} "
            "tensors; one of the two belongs to another model."
        )


def build(
    blank: Callable[[], Network],
    tensor_sources: Callable[[list[str]], Mapping[str, TensorSource]],
    tensors: Tensors,
    what: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    ignorable: Callable[[str], bool] | None = None,
) -> Network:
    """Fill the network that `blank` makes: each parameter from its source; each tensor must be used or ignorable.

    tensor_sources: {parameter: its source}, for a list of parameters. what: the name of the network in messages.
    dtype: None keeps that of each tensor. ignorable: whether a tensor of that name may be left out; None: no tensor.
    Raises MismatchError, which lists the missing, unexpected and misshapen tensors.
    """
    with torch.device("meta"), NoInitialisation():
        network = blank()
    shapes = {name: parameter.shape for name, parameter in network.state_dict().items()}
    sources = tensor_sources(list(shapes))
    _check(sources, shapes, tensors.shapes, ignorable, what)
    state, copied = {}, 0
    for name, source in sources.items():
        tensor = source.read(tensors.tensor(source.name))
        if not tensor.is_floating_point():
            raise MismatchError(f"{what}: {source.name} holds {tensor.dtype}, expected floating-point weights.")
        state[name] = tensor.to(device=device, dtype=stored_dtype(tensor.dtype) if dtype is None else dtype)
        copied += 0 if state[name] is tensor else tensor.nbytes
        if copied > FORGET_AFTER:  # the file's pages are not needed beside the copies
            tensors.forget()
            copied = 0
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def _check(
    sources: Mapping[str, TensorSource],
    shapes: Mapping[str, torch.Size],
    stored: Mapping[str, tuple[int, ...]],
    ignorable: Callable[[str], bool] | None,
    what: str,
) -> None:
    used = {source.name for source in sources.values()}
    missing = sorted(used - set(stored))
    unexpected = sorted(name for name in set(stored) - used if ignorable is None or not ignorable(name))
    misshapen = sorted(
        {
            f"{source.name} {tuple(stored[source.name])} (expected {source.shape(shapes[name])})"
            for name, source in sources.items()
            if source.name in stored and tuple(stored[source.name]) != source.shape(shapes[name])
        }
    )
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    kinds = {kind: names for kind, names in kinds.items() if names}
    room = CHARACTERS_OF_NAMES // max(len(kinds), 1)
    problems = [f"{len(names)} {kind}: {listed(names, room)}" for kind, names in kinds.items()]
    if problems:
        raise MismatchError(
            f"{what} does not fit its network; {'; '.join(problems)}; nothing was loaded, "
            "`minisd inspect` shows the contents of the file."
        )


def listed(names: list[str], room: int = 1000) -> str:
    """The first names for an error message: at most MAX_NAMES_SHOWN, and no more than fit in `room` characters."""
    most = MAX_NAMES_SHOWN
    while most > 1 and len(", ".join(names[:most])) > room:
        most -= 1
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def is_position_ids(name: str) -> bool:
    """Whether a tensor is the constant 0, 1, 2, ..., which old files store with the embeddings."""
    return name.endswith("embeddings.position_ids")


def is_of_encoder(name: str) -> bool:
    """Whether a tensor belongs to the encoder of a tiny autoencoder, of which minisd has the decoder."""
    return name.startswith("encoder.")
