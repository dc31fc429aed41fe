"""Tensors for which memory may be too small: they are kept in a temporary file."""

import math
import shutil
import tempfile
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from minisd.errors import OutputError

IN_MEMORY = 2**30  # bytes


def gathered(parts: Iterable[Tensor], count: int) -> Tensor:
    """The rows of all parts in one tensor of `count` rows.

    Above IN_MEMORY bytes it is on the CPU, in a file of the folder for temporary files (TMPDIR), which vanishes with
    the tensor. Raises OutputError if the disk has too little space for it.
    """
    whole, filled = torch.empty(0), 0
    for part in parts:
        if filled == 0:
            whole = _empty((count, *part.shape[1:]), part)
        whole[filled : filled + len(part)] = part
        filled += len(part)
    assert filled == count
    return whole


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    size = math.prod(shape) * like.element_size()
    if size <= IN_MEMORY:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    folder = tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < size:
        raise OutputError(
            f"the encoded data needs {size / 2**30:.1f} GiB in {folder}, which has {free / 2**30:.1f} GiB left; set "
            "TMPDIR to a folder with more space."
        )
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        bytes_of_file = np.memmap(file, np.uint8, "r+", shape=(size,))
    return torch.from_numpy(bytes_of_file).view(like.dtype).view(shape)
