"""The lint: a good notebook passes, and each rule reports a notebook that breaks it."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from notebooks.lint import problems

OPENING = "# 90 · A lesson\n\n**You will** see.\n\n**Needs** nothing.\n\n**Takes** 15 minutes."
ANSWERS = [f"<details><summary>Why {each}?</summary>\n\nBecause.\n\n</details>" for each in "abcde"]
EXPLAIN = "\n\n".join(["## What you can now explain", *ANSWERS])
TURN = "## Your turn\n\n[The exercises](../minisd/exercises/README.md)."
SUMMARY = "## Summary\n\nSee [the code](../minisd/a.py)."
ENDING = f"{EXPLAIN}\n\n{TURN}\n\n{SUMMARY}"
QUESTION = "**Predict, then run**: 42, or 1,024?\n\n<details><summary>Answer</summary>\n\nYes\n\n</details>"


def good() -> NotebookNode:
    new = nbformat.v4
    picture = new.new_output(
        "display_data",
        {"image/png": "AAAA", "text/plain": "[image]"},
        metadata={"image/png": {"alt": "a red circle on white"}},
    )
    cells = [
        new.new_markdown_cell(OPENING, id="a"),
        new.new_code_cell("print(6 * 7)", id="b", execution_count=1),
        new.new_markdown_cell(QUESTION, id="c"),
        new.new_code_cell("show(1024)", id="d", execution_count=2, outputs=[picture]),
        new.new_markdown_cell(ENDING, id="e"),
    ]
    cells[1].outputs = [new.new_output("stream", name="stdout", text="42\n")]
    return new.new_notebook(cells=cells)


def found(notebook: NotebookNode, folder: Path) -> list[str]:
    (folder / "minisd" / "exercises").mkdir(parents=True, exist_ok=True)
    for name in ("a.py", "exercises/README.md"):
        (folder / "minisd" / name).touch()
    path = folder / "notebooks" / "90_lesson.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(nbformat.writes(notebook))
    return problems(path)


def test_a_good_notebook_passes(tmp_path: Path) -> None:
    assert found(good(), tmp_path) == []


def prose(n: int, text: str) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells[n].update(source=text)


def printed(text: str, name: str = "stdout") -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", name=name, text=text))


def shown(kind: str, data: str, **metadata: object) -> Callable[[NotebookNode], None]:
    output = nbformat.v4.new_output("display_data", {kind: data}, metadata=metadata)
    return lambda nb: nb.cells[1].outputs.append(output)


RULES: dict[str, tuple[Callable[[NotebookNode], object], str]] = {
    "title": (prose(0, OPENING.replace("# 90", "## 90")), "does not begin with its title"),
    "title, code first": (lambda nb: nb.cells.pop(0), "does not begin with its title"),
    "two titles": (prose(2, "# Another\n\n" + QUESTION), "more than one title"),
    "verbs": (prose(0, OPENING.replace("**You will**", "You")), "does not contain **You will**"),
    "needs": (prose(0, OPENING.replace("**Needs**", "Needs")), "does not contain **Needs**"),
    "takes": (prose(0, OPENING.replace("**Takes**", "Takes")), "does not contain **Takes**"),
    "summary": (prose(4, ENDING.replace("## Summary", "## End")), "does not end with `## Summary`"),
    "code link": (prose(4, "## Summary\n\nThat was it."), "and a link to the code"),
    "question": (prose(2, "Nothing."), "has 0 `**Predict, then run**`"),
    "answer": (prose(2, "**Predict, then run**: why?"), "and 0 folded answers"),  # those of ENDING do not count
    "no explanations": (prose(4, f"{TURN}\n\n{SUMMARY}"), "does not end with the sections `## What"),
    "no turn": (prose(4, f"{EXPLAIN}\n\n{SUMMARY}"), "does not end with the sections"),
    "sections exchanged": (prose(4, f"{TURN}\n\n{EXPLAIN}\n\n{SUMMARY}"), "does not end with the sections"),
    "four answers": (prose(4, ENDING.replace(ANSWERS[2], "")), "has 4 questions with a folded answer"),
    "six answers": (prose(4, ENDING.replace(TURN, f"{ANSWERS[2]}\n\n{TURN}")), "has 6 questions with a folded answer"),
    "an answer elsewhere": (prose(4, ENDING.replace(ANSWERS[2], "") + "\n\n" + ANSWERS[2]), "has 4 questions with a"),
    "not a question": (prose(4, ENDING.replace("Why c?", "Why c.")), "has 4 questions with a folded answer"),
    "no blank line": (prose(4, ENDING.replace("Why c?</summary>\n", "Why c?</summary>")), "has 4 questions with a"),
    "exercises": (prose(4, ENDING.replace("exercises/README.md", "a.py")), "has no link to the exercises"),
    "details": (prose(2, QUESTION.replace("</details>", "")), "<details> or </details> without its counterpart"),
    "order": (lambda nb: nb.cells[1].update(execution_count=3), "not executed once from top to bottom"),
    "not run": (lambda nb: nb.cells[1].update(execution_count=None), "not executed once from top to bottom"),
    "widgets": (lambda nb: nb.metadata.update(widgets={}), "widget state"),
    "widget": (shown("application/vnd.jupyter.widget-view+json", "x"), "is a widget"),
    "metadata": (lambda nb: nb.cells[1].metadata.update(execution={}), "has metadata (execution)"),
    "error": (
        lambda nb: nb.cells[1].outputs.append(
            nbformat.v4.new_output("error", ename="KeyError", evalue="", traceback=[])
        ),
        "is an error, KeyError",
    ),
    "warning": (printed("x.py:1: UserWarning: hot\n", "stderr"), "is a warning: x.py:1: UserWarning: hot"),
    "size": (prose(2, QUESTION + "\n" + "long " * 250_000), "MB, expected at most 1 MB"),
    "output": (printed("long " * 100_000), "bytes, expected at most 400000"),
    "no alt": (shown("image/gif", "AAAA"), "without an alternative text"),
    "short alt": (shown("image/png", "AAAA", **{"image/png": {"alt": "an image"}}), "without an alternative text"),
    "alt of Markdown": (prose(2, QUESTION + "\n![](../minisd/a.py)"), "an image in cell c has no alternative text"),
    "data": (prose(2, QUESTION + "\n![one two three four](data:image/png;base64,AA)"), "written into the text"),
    "link": (prose(2, QUESTION + "\n[gone](../minisd/b.py)"), "has no target: ../minisd/b.py"),
    "path": (printed("/home/me/minisd/a.py:3\n"), "a path of this machine"),
    "address": (printed("<object at 0x7f3a5c001d90>\n"), "an address in memory"),
    "clock": (printed("done at 12:31:07\n"), "a time of day"),
    "colour": (printed("\x1b[31mred\x1b[0m\n"), "a terminal colour"),
    "number": (prose(2, QUESTION.replace("42", "43")), "43 in the text of cell c"),
    "decimal": (prose(2, QUESTION.replace("42", "0.5")), "0.5 in the text of cell c"),
    "thousands": (prose(2, QUESTION.replace("1,024", "1,025")), "1,025 in the text of cell c"),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(rule: str, tmp_path: Path) -> None:
    notebook = good()
    spoil, message = RULES[rule]
    spoil(notebook)
    assert any(message in each for each in found(notebook, tmp_path)), found(notebook, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "(Ho et al. 2020)",
        "as Lin 2024 do",
        "notebook 15",
        "notebook\n15",
        "`range(77)`",
        "[x](https://a.org/2112.10752)",
        "x 42.0",
    ],
)
def test_years_and_names_are_not_measured_numbers(text: str, tmp_path: Path) -> None:
    notebook = good()
    notebook.cells[2].source += f"\n\n{text}"
    assert found(notebook, tmp_path) == []


def test_files_that_are_not_notebooks(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    for text in ("", "{}", "[]", '{"cells": 3}', "print(1)"):
        path.write_text(text)
        (only,) = problems(path)
        assert only.startswith("a.ipynb: is not a valid notebook")
