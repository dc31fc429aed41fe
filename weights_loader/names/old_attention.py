"""Other spellings of self-attention in old or half-converted files: names of layers, matrices for 1x1 convolutions."""

from collections.abc import Mapping
from dataclasses import replace

from weights_loader.names import TensorSource

# each layer by its names: in the original files, in today's folders, in the first folders on the hub
NORMS = ("norm", "group_norm")
SPELLINGS = (
    NORMS,
    ("q", "to_q", "query"),
    ("k", "to_k", "key"),
    ("v", "to_v", "value"),
    ("proj_out", "to_out.0", "proj_attn"),
)


def as_stored(sources: Mapping[str, TensorSource], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSource]:
    """{parameter: its source} as a file with tensors of these shapes has it, in any mixture of spellings and ranks."""
    return {parameter: _as_stored(parameter, source, shapes) for parameter, source in sources.items()}


def _as_stored(parameter: str, source: TensorSource, shapes: Mapping[str, tuple[int, ...]]) -> TensorSource:
    stem, kind = source.name.rsplit(".", 1)
    for names in SPELLINGS:
        for spelling in names:
            if not stem.endswith(f".{spelling}"):
                continue
            block = stem.removesuffix(spelling)
            candidates = [source.name, *(f"{block}{name}.{kind}" for name in names)]
            name = next((each for each in candidates if each in shapes), source.name)
            rank = len(shapes.get(name, ()))
            is_matrix = ".attention." in parameter and kind == "weight" and rank in (2, 4) and spelling not in NORMS
            return replace(source, name=name, convolution=rank == 4 if is_matrix else source.convolution)
    return source
