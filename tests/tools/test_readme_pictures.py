"""The images of the READMEs are drawn completely, and existing files are kept."""

from functools import partialmethod
from pathlib import Path

import pytest
from PIL import Image

import minisd
from minisd.errors import OutputError
from minisd.pipeline import StableDiffusion
from tools.readme_pictures import draw_all


def test_the_images_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = partialmethod(StableDiffusion.__call__, num_inference_steps=4)  # the film shows all steps
    monkeypatch.setattr(StableDiffusion, "__call__", quick)
    draw_all(tmp_path)
    drawn = {path.name: Image.open(path) for path in tmp_path.iterdir()}
    assert set(drawn) == {"film.png", "heat_maps.png", "styles.png", "tasks.png", "adapters.png"}
    for name, picture in drawn.items():
        assert len(picture.convert("RGB").getcolors(10**6)) > 100, name
        shown = Path(minisd.__file__).parent / "assets" / "sticker" / name
        assert Image.open(shown).size == picture.size
    assert capsys.readouterr().out.count("\n") == 5
    with pytest.raises(OutputError, match="exists already"):
        draw_all(tmp_path)
