"""The notebooks of the exercises: without outputs or answers, they open with the image to be reached."""

import ast
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from minisd.exercises import EXERCISES
from notebooks.exercise_notebooks import exercise_notebook, main


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_a_notebook(name: str) -> None:
    exercise = EXERCISES[name]
    notebook = exercise_notebook(exercise, None)
    nbformat.validate(notebook)
    opening, function, check, hints = notebook.cells
    assert opening.source.startswith(f"# {exercise.number} · {exercise.title}")
    (*_, definition) = ast.parse(function.source).body
    assert isinstance(definition, ast.FunctionDef)
    assert definition.name == name
    assert len(definition.body) == 2  # the docstring, and what raises
    assert check.source.endswith(f'check("{name}", {name})')
    assert hints.source.count("<details>") == len(exercise.hints)
    assert not function.outputs
    assert not check.outputs


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "guide", "size_vector"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name[3:] for path in paths] == ["guide.ipynb", "size_vector.ipynb"]
    opening = nbformat.read(paths[0], as_version=4).cells[0].source
    assert "(figures/guide.png)" in opening
    assert "lesson 08_guidance" in opening
    with Image.open(tmp_path / "figures" / "guide.png") as image:
        colours = image.convert("RGB").getcolors(image.width * image.height) or []
        assert image.width >= 256
        assert len(colours) > 50  # an image is drawn
    assert "figures/" not in nbformat.read(paths[1], as_version=4).cells[0].source
    assert not (tmp_path / "figures" / "size_vector.png").exists()
    assert main([str(tmp_path), "no_such"]) == 1
    assert "no_such" in capsys.readouterr().err
