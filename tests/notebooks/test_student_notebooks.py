"""The notebooks for students: no outputs, empty functions, and the claims that test them."""

import ast
import sys
from pathlib import Path

import nbformat
import pytest

from notebooks import student
from notebooks.build import BuildError, sources
from notebooks.student import WRITTEN, emptied, main, student_notebook

SOURCES = {path.name[:2]: path for path in sources()}


def test_functions_lose_their_bodies() -> None:
    one = 'def one(x):\n    """Text."""\n    y = x\n    return y\n'
    code = f"import torch\n\n\n{one}\n\ndef two(x):\n    return x\n\n\nprint(one(2))"
    text, found = emptied(code, {"one", "two", "three"})
    assert found == {"one", "two"}
    assert text == (
        'import torch\n\n\ndef one(x):\n    """Text."""\n    raise NotImplementedError\n\n\n'
        "def two(x):\n    raise NotImplementedError\n\n\nprint(one(2))"
    )


@pytest.mark.parametrize("number", SOURCES)
def test_every_lesson_has_a_students_edition(number: str) -> None:
    notebook = student_notebook(SOURCES[number])
    nbformat.validate(notebook)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    for each in code:
        ast.parse(each)
    text = "\n".join(code)
    assert text.count("raise NotImplementedError") >= len(WRITTEN.get(number, ()))
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert "lesson.show_titles = False" in text
    if number in WRITTEN:
        assert "lesson.claim" in text


def test_a_function_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(student.WRITTEN, "05", ("add_noise", "no_such"))
    with pytest.raises(BuildError, match="has no function no_such"):
        student_notebook(SOURCES["05"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out"), "05", "08"]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["05_noise_schedule.ipynb", "08_guidance.ipynb", "diagrams", "lesson.py"]
    assert (tmp_path / "out" / "diagrams" / "guidance.png").exists()
    assert main([str(tmp_path / "out"), "99"]) == 1
    assert "unknown notebook '99'" in capsys.readouterr().err


def test_a_cell_installs_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = "https://example.org/minisd.git"
    assert main([str(tmp_path), "05", "--complete", "--repository", address]) == 0
    notebook = nbformat.read(tmp_path / "05_noise_schedule.ipynb", as_version=4)
    nbformat.validate(notebook)
    install = notebook.cells[1].source
    assert f'"{address}"' in install
    exec(compile(install, "install", "exec"), {})  # nothing to do here
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "raise NotImplementedError" not in text
    assert "show_titles = False" not in text
    for bad in ("--upload-pack=x", 'a"b', "", "a b"):
        assert main([str(tmp_path), "05", f"--repository={bad}"]) == 1
        assert "--repository is" in capsys.readouterr().err


def test_the_cell_runs_git_and_pip_where_minisd_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    monkeypatch.setattr("sys.path", ["a"])
    notebook = student_notebook(SOURCES["05"], repository="https://example.org/minisd.git")
    exec(compile(notebook.cells[1].source, "install", "exec"), {})
    assert commands[0][:2] == ["git", "clone"]
    assert commands[0][-2:] == ["https://example.org/minisd.git", "minisd-repository"]
    assert commands[1][1:4] == ["-m", "pip", "install"]
    assert sys.path == ["a", "minisd-repository/notebooks"]
