"""Each cell of a course is a function of a library; the tests run it with minisd.course and with the reference."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import transformers

import minisd
from minisd import course

diffusers.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

THEIRS = SimpleNamespace(
    **{name: getattr(diffusers, name) for name in course.__all__ if hasattr(diffusers, name) and name != "logging"},
    CLIPTextModel=transformers.CLIPTextModel,
    CLIPTokenizer=transformers.CLIPTokenizer,
    logging=transformers.logging,
)


@pytest.fixture
def ours() -> Any:
    return course


@pytest.fixture
def theirs() -> Any:
    return THEIRS


@pytest.fixture(scope="session")
def model() -> str:
    """The embedded model as a folder, which both libraries can load."""
    return str(Path(minisd.__file__).parent / "assets" / "sticker")
