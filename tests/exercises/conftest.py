"""The runs of the embedded model, made once for all tests."""

import pytest

import weights_loader
from minisd.exercises.pipeline_run import Runs


@pytest.fixture(scope="session")
def runs() -> Runs:
    return Runs(weights_loader.load("sticker"))
