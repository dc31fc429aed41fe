"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a real hub
torch.set_num_threads(max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of facts about the official models (MINISD_SHARED_DATA, or ../shared/data beside the checkout)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("MINISD_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip("the folder of official facts (shared/data) is not here")
    return path
