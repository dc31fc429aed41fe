"""The display helpers: false claims, missing alternative texts and wrong labels are errors."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from minisd.errors import InputError
from notebooks import build, lesson

IMAGES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]


def test_a_true_claim_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lesson.claim("one is one", torch.tensor(1) == 1)
    assert capsys.readouterr().out == "✓ one is one\n"


def test_a_false_claim_is_an_error() -> None:
    with pytest.raises(AssertionError, match="this claim is false: one is two"):
        lesson.claim("one is two", False)


def test_images_need_an_alternative_text() -> None:
    with pytest.raises(InputError, match="alt is 'two images', expected a sentence"):
        lesson.pictures(IMAGES, alt="two images")


def test_the_count_of_labels_must_fit() -> None:
    with pytest.raises(InputError, match=r"3 labels were given, expected 1 \(columns\) or 2 \(images\)"):
        lesson.pictures(IMAGES, alt="a red and a blue square", labels="abc", columns=1)


def test_jupyter_finds_it_from_the_folder_of_the_notebooks() -> None:
    """Jupyter starts a kernel in the notebook's folder: there `import lesson` works without the builder's path."""
    subprocess.run([sys.executable, "-c", "import lesson, minisd"], cwd=build.FOLDER, check=True)
