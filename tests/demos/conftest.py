"""The embedded models, once for all tests of the demos."""

import pytest

import weights_loader
from minisd.pipeline import StableDiffusion


@pytest.fixture(scope="session")
def sticker() -> StableDiffusion:
    return weights_loader.load("sticker")


@pytest.fixture(scope="session")
def inpainting_model() -> StableDiffusion:
    return weights_loader.load("sticker-inpainting")


@pytest.fixture(scope="session")
def depth_model() -> StableDiffusion:
    return weights_loader.load("sticker-depth")
