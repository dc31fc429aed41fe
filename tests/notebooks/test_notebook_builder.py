"""The builder: conversion is deterministic, and a problem of a source is one sentence."""

import base64
from pathlib import Path

import nbformat
import pytest

from notebooks import build

FOLDED = "\n".join(f"# <details><summary>Why {each}?</summary>\n#\n# So.\n#\n# </details>\n#" for each in "abcde")
SOURCE = f"""# %% [markdown]
# # 90 · A lesson
#
# **You will** add. **Needs** nothing. **Takes** a minute.

# %%
print("one")
print(2 + 40)

# %% [markdown]
# **Predict, then run**: more than 42?
#
# <details><summary>Answer</summary>No.</details>
#
# ## What you can now explain
#
{FOLDED}
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md)
#
# ## Summary
#
# [code](../minisd/minimal.py)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source in a folder like the real one, in which its links work."""
    (tmp_path / "minisd" / "exercises").mkdir(parents=True)
    for name in ("minimal.py", "exercises/README.md"):
        (tmp_path / "minisd" / name).touch()
    path = tmp_path / "notebooks" / "src" / "90_lesson.py"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return path


def fill(notebook: nbformat.NotebookNode) -> None:
    """The outputs of an execution, without a kernel."""
    cell = notebook.cells[1]
    cell.execution_count = 1
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="one\n42\n")]


def built(source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "execute", lambda notebook, name: fill(notebook) or 1.0)
    build.build(source)
    return build.target(source)


def test_a_source_becomes_cells(source: Path) -> None:
    notebook = build.convert(source)
    assert [(cell.cell_type, cell.id) for cell in notebook.cells] == [
        ("markdown", "90-00"),
        ("code", "90-01"),
        ("markdown", "90-02"),
    ]
    assert notebook.cells[0].source.startswith("# 90 · A lesson\n\n**You will**")
    assert notebook.cells[1].source == 'print("one")\nprint(2 + 40)'
    nbformat.validate(notebook)


def test_converting_is_deterministic(source: Path) -> None:
    assert nbformat.writes(build.convert(source)) == nbformat.writes(build.convert(source))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print(1)\n", "does not begin with a cell"),
        ("", "does not begin with a cell"),
        ("# %% [markdown]\nhello\n", "is Markdown with the line 'hello'"),
        ("# %% [markdown]\n#hello\n", "is Markdown with the line '#hello'"),
        ("# %%\n\n# %%\n1\n", "cell 0 of 90_lesson.py is empty"),
        ("# %%\n1 +\n", "cell 0 of 90_lesson.py is not valid Python"),
        ("# %% [code]\n1\n", "begins with `# %% [code]`"),
    ],
)
def test_bad_sources_are_one_sentence(source: Path, text: str, message: str) -> None:
    source.write_text(text)
    with pytest.raises(build.BuildError, match=r"^[^\n]+$") as error:
        build.convert(source)
    assert message in str(error.value)


def test_a_source_that_is_not_text(source: Path) -> None:
    source.write_bytes(b"# %%\n\xff\n")
    with pytest.raises(build.BuildError, match="cannot be read as UTF-8 text"):
        build.convert(source)


def test_unknown_numbers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["77"]) == 2
    message = capsys.readouterr().err
    assert "unknown notebook '77', expected one of 00, " in message
    assert message.count("\n") == 1


def test_two_sources_of_one_number(source: Path) -> None:
    (source.parent / "90_other.py").write_text(SOURCE)
    with pytest.raises(build.BuildError, match="two sources have the same number"):
        build.sources(folder=source.parent.parent)


def test_a_built_notebook_is_up_to_date(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(source, monkeypatch)
    assert build.check([source], source.parent.parent) == []


def test_an_edited_source_is_noticed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(source, monkeypatch)
    source.write_text(SOURCE.replace("a minute", "an hour"))
    assert build.stale(source) == ["90_lesson.ipynb: its source has changed"]


def test_another_model_is_noticed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(source, monkeypatch)
    monkeypatch.setattr(build, "model_hash", lambda variants: "another")
    assert build.stale(source) == ["90_lesson.ipynb: its model has changed"]


def test_other_task_variants_are_noticed_by_a_notebook_that_loads_them(source: Path) -> None:
    def model(text: str) -> str:
        source.write_text(text)
        return build.convert(source).metadata.minisd["model"]

    assert model(SOURCE) == model(SOURCE.replace("a minute", "an hour"))
    assert model(SOURCE) != model(SOURCE.replace("2 + 40", "load('sticker-depth')"))


def test_an_edited_notebook_is_noticed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(source, monkeypatch)
    path.write_text(path.read_text().replace("2 + 40", "2 + 41"))
    assert build.stale(source) == ["90_lesson.ipynb: its cells differ from its source"]


def test_missing_and_left_over_notebooks(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(source, monkeypatch)
    path.rename(path.with_name("91_old.ipynb"))
    wrong = build.check([source], source.parent.parent)
    assert wrong == ["90_lesson.ipynb is missing", "91_old.ipynb has no source"]


def test_a_damaged_notebook_is_one_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(source, monkeypatch)
    path.write_text(path.read_text()[:100])
    (first, *_) = build.stale(source)
    assert first.startswith("90_lesson.ipynb cannot be compared with its source")


def test_a_notebook_that_breaks_a_rule_is_not_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(source, monkeypatch)
    before = path.read_bytes()
    source.write_text(SOURCE.replace("more than 42", "more than 77"))
    with pytest.raises(build.BuildError, match="77 in the text"):
        build.build(source)
    assert path.read_bytes() == before
    assert set(path.parent.iterdir()) == {path, source.parent}


def test_the_gallery_holds_the_image_of_a_notebook(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def paint(notebook: nbformat.NotebookNode, name: str) -> float:
        fill(notebook)
        for data in (b"first", b"second"):
            image = {"image/png": base64.b64encode(data).decode(), "text/plain": "image"}
            alt = {"image/png": {"alt": "four words for it"}}
            notebook.cells[1].outputs.append(nbformat.v4.new_output("display_data", data=image, metadata=alt))
        return 1.0

    monkeypatch.setattr(build, "execute", paint)
    monkeypatch.setattr(build, "GALLERY", {"90": 1})
    build.build(source)
    path = source.parent.parent / "gallery" / "90.png"
    assert path.read_bytes() == b"second"
    assert build.check([source], source.parent.parent) == []
    path.write_bytes(b"another")
    assert build.check([source], source.parent.parent) == ["gallery/90.png differs from the image in 90_lesson.ipynb"]
    monkeypatch.setattr(build, "GALLERY", {"90": 2})
    assert build.check([source], source.parent.parent) == [
        "90_lesson has 2 images, but GALLERY names image 2, counted from 0."
    ]


def test_printed_text_is_joined() -> None:
    texts = [("stdout", "a"), ("stdout", "b\n"), ("stderr", "c"), ("stdout", "d"), ("stdout", "e")]
    joined = build._joined([nbformat.v4.new_output("stream", name=name, text=text) for name, text in texts])
    assert [(each.name, each.text) for each in joined] == [("stdout", "ab\n"), ("stderr", "c"), ("stdout", "de")]


@pytest.mark.slow
def test_executing(source: Path) -> None:
    took = build.build(source)
    notebook = nbformat.read(build.target(source), as_version=4)
    (output,) = notebook.cells[1].outputs
    assert output.text == "one\n42\n"
    assert notebook.cells[1].execution_count == 1
    assert 0 < took < build.BUDGET
    first = build.target(source).read_bytes()
    build.build(source)
    assert build.target(source).read_bytes() == first


@pytest.mark.slow
def test_a_cell_that_fails_names_itself(source: Path) -> None:
    source.write_text(SOURCE.replace("2 + 40", "1 / 0"))
    with pytest.raises(build.BuildError, match="90_lesson: cell 90-01 failed with ZeroDivisionError"):
        build.build(source)
    assert not build.target(source).exists()


@pytest.mark.slow
def test_a_cell_that_hangs_is_stopped(source: Path) -> None:
    source.write_text(SOURCE.replace('print("one")', "import time; time.sleep(60)"))
    with pytest.raises(build.BuildError, match="ran for more than 2 s"):
        build.execute(build.convert(source), "90_lesson", seconds=2)
