"""Fixtures for the whole suite."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a real hub
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # more threads than cores would wait for each other
    threads = max(1, (os.cpu_count() or 2) // int(workers))
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for child processes
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores Ctrl-C, as do its children
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def commands_run_on_the_cpu() -> Iterator[None]:
    """Without --device a command takes the fastest device; here the CPU, whose images the tests compare bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weights_loader.best_device", lambda: torch.device("cpu"))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of facts about the official models (MINISD_SHARED_DATA, or ../shared/data beside the checkout)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("MINISD_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip("the folder of official facts (shared/data) is not here")
    return path
