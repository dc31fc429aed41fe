"""The drawn diagrams: each has its file, and is used."""

from pathlib import Path

import pytest
from PIL import Image

from notebooks.diagrams import DIAGRAMS, FOLDER, save

ROOT = FOLDER.parent.parent


@pytest.mark.parametrize("name", DIAGRAMS)
def test_the_file_is_what_the_code_draws(name: str, tmp_path: Path) -> None:
    """Of the same size, and about as dark: fonts differ a little from machine to machine."""
    (drawn,) = save([name], tmp_path)
    with Image.open(FOLDER / f"{name}.png") as kept, Image.open(drawn) as new:
        assert kept.size == new.size
        greys = [sum(image.convert("L").resize((64, 32)).tobytes()) / 2048 for image in (kept, new)]
    assert abs(greys[0] - greys[1]) < 3


def test_every_diagram_is_used() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "notebooks").glob("*.md"))]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks" / "src").glob("*.py")]
    assert {path.stem for path in FOLDER.glob("*.png")} == set(DIAGRAMS)
    for name in DIAGRAMS:
        assert any(f"diagrams/{name}.png" in text for text in texts), f"no text shows {name}.png"
