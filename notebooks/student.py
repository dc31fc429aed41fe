"""Notebooks for students, from the sources of the lessons: python -m notebooks.student FOLDER [NUMBER ...]

They have no outputs, and figures without titles, which would give the answers away. The functions of WRITTEN are empty:
the student writes them, and the claims of the lesson are the test. With --complete they are whole. --repository ADDRESS
adds a cell that installs minisd from there, for Colab.
"""

import argparse
import ast
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from notebooks.build import FOLDER, BuildError, convert, sources
from notebooks.install_cell import add_install_cell

WRITTEN = {  # functions that the student writes, by the lesson's number
    "01": ("rows", "broadcasting", "linear"),
    "03": ("group_norm", "softmax", "attention", "heads_apart"),
    "05": ("add_noise", "x0_and_eps", "ddim_step"),
    "06": ("euler", "heun"),
    "07": ("sinusoids", "residual", "feed_forward"),
    "08": ("combine",),
    "10": ("pairs_of", "merged", "encode_word"),
    "11": ("embed", "causal_mask", "layer_norm", "layer_step"),
}
INTRODUCTION = (
    "This is the student's edition of the lesson: without outputs, and with empty functions. Write them where "
    "`raise NotImplementedError` stands; the claims below them are the test."
)


def student_notebook(source: Path, complete: bool = False, repository: str | None = None) -> NotebookNode:
    """The notebook of a lesson for students. Raises BuildError if a function of WRITTEN is missing.

    complete: with all functions and titles. repository: an address to install minisd from.
    """
    notebook = convert(source)
    if not complete:
        _leave_out_answers(notebook, source)
    if repository is not None:
        add_install_cell(notebook, repository)
    return notebook


def _leave_out_answers(notebook: NotebookNode, source: Path) -> None:
    missing = set(WRITTEN.get(source.name[:2], ()))
    first = True
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.source, found = emptied(cell.source, missing)
        missing -= found
        if first and "import lesson" in cell.source:
            cell.source += "\n\nlesson.show_titles = False"
            first = False
    if missing:
        raise BuildError(f"{source.name} has no function {', '.join(sorted(missing))}, which WRITTEN names.")
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(INTRODUCTION, id=f"{source.name[:2]}-student"))


def emptied(code: str, names: Sequence[str] | set[str]) -> tuple[str, set[str]]:
    """Code whose functions of these names keep their first line and docstring; and the names that were found."""
    lines, found = code.split("\n"), set()
    for node in reversed(ast.parse(code).body):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            body = node.body
            has_text = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
            kept = body[0].end_lineno if has_text else body[0].lineno - 1
            if body[0].lineno == node.lineno:  # all on one line
                lines[kept] = lines[kept][: body[0].col_offset].rstrip()
                kept += 1
            lines[kept : node.end_lineno] = [textwrap.indent("raise NotImplementedError", "    ")]
            found.add(node.name)
    return "\n".join(lines), found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the notebooks, and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.student", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("number", nargs="*")
    parser.add_argument("--complete", action="store_true", help="with all functions and titles")
    parser.add_argument("--repository", metavar="ADDRESS", help="adds a cell that installs minisd from this address")
    args = parser.parse_args(arguments)
    try:
        notebooks = {path.stem: student_notebook(path, args.complete, args.repository) for path in sources(args.number)}
        args.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / "lesson.py", args.folder)  # the notebooks import it
        shutil.copytree(FOLDER / "diagrams", args.folder / "diagrams", dirs_exist_ok=True)  # they show them
        for name, notebook in notebooks.items():
            path = args.folder / f"{name}.ipynb"
            nbformat.write(notebook, path)
            print(path)
    except (BuildError, OSError) as error:
        print(f"notebooks.student: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
