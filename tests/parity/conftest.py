"""Weights for the tests of `minisd bench`."""

from pathlib import Path

import pytest


@pytest.fixture
def without_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each measurement the garbage is collected, which takes long in a process with all tests."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")
