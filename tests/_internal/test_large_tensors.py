"""Rows gathered into one tensor, in memory or in a temporary file."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from minisd._internal import large_tensors
from minisd._internal.large_tensors import gathered
from minisd.errors import OutputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_the_rows_of_all_parts(in_memory: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[np.memmap[Any, Any]] = []
    mapped = np.memmap
    monkeypatch.setattr(large_tensors, "IN_MEMORY", in_memory)
    monkeypatch.setattr(large_tensors.np, "memmap", lambda *how, **more: files.append(mapped(*how, **more)) or files[0])
    parts = [torch.randn(count, 2, 3).to(dtype) for count in (3, 1, 4)]
    whole = gathered(iter(parts), 8)
    assert torch.equal(whole, torch.cat(parts))
    assert len(files) == (in_memory == 0)


def test_too_little_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_tensors, "IN_MEMORY", 0)
    monkeypatch.setattr(large_tensors.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2**29}))
    whole = torch.empty(1, device="meta").expand(2, 2**28)
    with pytest.raises(OutputError, match=re.escape("needs 2.0 GiB in") + ".* has 0.5 GiB left; set TMPDIR"):
        gathered([whole], 2)
