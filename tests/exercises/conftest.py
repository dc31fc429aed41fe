"""The embedded model, once for all tests of a file."""

import pytest

import weights_loader
from minisd.pipeline import StableDiffusion


@pytest.fixture(scope="module")
def sticker() -> StableDiffusion:
    return weights_loader.load("sticker")
