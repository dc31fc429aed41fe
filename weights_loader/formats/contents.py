"""What the reader of a file format returns."""

import mmap
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minisd._internal.messages import shown
from minisd.errors import FileFormatError

MAX_NAME = 1000  # characters
ONLY_TENSOR = "(a tensor without a name)"  # its name here, for a checkpoint that is one tensor and no dict


@dataclass
class Contents:
    """The tensors of a file, mapped but not read, its metadata, and one sentence for each entry that is not loaded.

    mapped: the map of the file, where the reader made it.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    mapped: mmap.mmap | None = None


def check_name(name: str, path: Path) -> None:
    """Refuse tensor names that are empty, too long, or contain control characters or lone surrogates."""
    if not 0 < len(name) <= MAX_NAME or re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        raise FileFormatError(
            f"{path}: the tensor name {shown(name)} has {len(name):,} characters; expected 1 to {MAX_NAME:,} "
            "without control characters."
        )
