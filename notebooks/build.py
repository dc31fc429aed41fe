"""Build the notebooks: python -m notebooks.build [NUMBER ...] [--check]

src/NN_name.py, in percent format, becomes the executed NN_name.ipynb; never the other way. A notebook records what
it was made from, so that --check can tell whether source, embedded model and outputs still belong together.
"""

import argparse
import ast
import base64
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from notebooks.lint import problems

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
MODEL = ROOT / "minisd" / "assets" / "sticker"
BUDGET = 90  # seconds a notebook may take on two CPU cores
GALLERY = {"04": 5, "07": 4, "15": 1, "16": 5, "18": 1, "21": 0}  # whose picture, counted from 0, the README shows


class BuildError(ValueError):
    """What is wrong with a source, in one sentence."""


def sources(numbers: Sequence[str] = (), folder: Path = FOLDER) -> list[Path]:
    """The sources in learning order, or those of some numbers. Raises BuildError for a number that there is not."""
    found = sorted((folder / "src").glob("[0-9][0-9]_*.py"))
    known = [path.name[:2] for path in found]
    if len(set(known)) < len(known):
        raise BuildError(f"two sources have one number among {', '.join(known)}; give each its own.")
    for number in numbers:
        if number not in known:
            raise BuildError(f"there is no notebook {number!r}, expected one of {', '.join(known)}.")
    return [path for path in found if not numbers or path.name[:2] in numbers]


def target(source: Path) -> Path:
    """Where the notebook of a source lies."""
    return source.parent.parent / f"{source.stem}.ipynb"


def convert(source: Path) -> NotebookNode:
    """A source in percent format -> a notebook without outputs, always the same. Raises BuildError."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{source.name} cannot be read as UTF-8 text: {error}.") from error
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    if len(parts) == 1 or parts[0].strip():
        raise BuildError(f"{source.name} does not begin with a cell; its first line is to be `# %% [markdown]`.")
    cells = []
    for n, (kind, body) in enumerate(zip(parts[1::2], parts[2::2], strict=True)):
        where, name = f"cell {n} of {source.name}", f"{source.name[:2]}-{n:02d}"
        body = body.strip("\n")
        if not body.strip():
            raise BuildError(f"{where} is empty; remove it.")
        if kind == " [markdown]":
            cells.append(nbformat.v4.new_markdown_cell(_uncommented(body, where), id=name))
        elif kind == "":
            try:
                ast.parse(body)
            except SyntaxError as error:
                raise BuildError(f"{where} is no Python: {error.msg} in its line {error.lineno}.") from error
            cells.append(nbformat.v4.new_code_cell(body, id=name))
        else:
            raise BuildError(f"{where} begins with `# %%{kind}`, expected `# %%` or `# %% [markdown]`.")
    made_from = {"source": hashlib.sha256(text.encode()).hexdigest(), "model": model_hash("sticker-" in text)}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "minisd": made_from}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _uncommented(body: str, where: str) -> str:
    lines = body.split("\n")
    for line in lines:
        if line != "#" and not line.startswith("# "):
            raise BuildError(f"{where} is Markdown, but has the line {line!r}; each is to begin with `# `.")
    return "\n".join(line[2:] for line in lines)


@cache
def model_hash(variants: bool) -> str:
    """Of the embedded model that outputs depend on: weights, settings, vocabulary; with `variants` of these, too."""
    digest = hashlib.sha256()
    apart = {"results.json", "tasks.json", "adapters", *(() if variants else ("variants",))}
    for path in sorted(MODEL.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt") and not apart & set(path.relative_to(MODEL).parts):
            digest.update(path.relative_to(MODEL).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def execute(notebook: NotebookNode, name: str, seconds: int = BUDGET) -> float:
    """Run all cells in a new kernel, offline and on one thread; returns the seconds that they took.

    Raises BuildError for a cell that fails, and when they take more than `seconds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=seconds,
            startup_timeout=120,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            store_widget_state=False,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")])),
            "IPYTHONDIR": folder,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        began = time.perf_counter()
        try:
            client.execute(env={**os.environ, **variables})
        except CellExecutionError as error:
            failed = next(
                cell for cell in notebook.cells if any(o.output_type == "error" for o in cell.get("outputs", []))
            )
            raise BuildError(f"{name}: cell {failed.id} failed with {error.ename}: {error.evalue}") from error
        except CellTimeoutError as error:
            raise BuildError(f"{name}: a cell ran for more than {seconds} s; make it smaller.") from error
        except DeadKernelError as error:
            raise BuildError(f"{name}: its kernel died; look for what uses too much memory.") from error
        took = time.perf_counter() - began
    if took > seconds:
        raise BuildError(f"{name} took {took:.0f} s, expected at most {seconds}; make it smaller.")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            cell.metadata = NotebookNode()
    notebook.metadata.language_info = NotebookNode(name="python")  # the version would change from machine to machine
    return took


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Printed text as one output, however the kernel happened to cut it."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def stale(source: Path) -> list[str]:
    """Why the notebook of a source has to be built again; nothing where it is current."""
    path = target(source)
    if not path.exists():
        return [f"{path.name} is missing"]
    try:
        notebook, wanted = nbformat.read(path, as_version=4), convert(source)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [f"{path.name} cannot be compared with its source: {error}"]
    found = notebook.metadata.get("minisd", {})
    reasons = [
        f"{path.name}: its {part} has changed"
        for part, value in wanted.metadata.minisd.items()
        if found.get(part) != value
    ]
    cells = [[(cell.id, cell.cell_type, cell.source) for cell in each.cells] for each in (notebook, wanted)]
    return reasons or ([] if cells[0] == cells[1] else [f"{path.name}: its cells are not those of its source"])


def gallery(source: Path) -> tuple[Path, bytes] | None:
    """The picture of a built notebook that the README shows, and its file; None where it shows none."""
    if source.name[:2] not in GALLERY:
        return None
    cells = nbformat.read(target(source), as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if len(pictures) <= GALLERY[source.name[:2]]:
        raise BuildError(f"{source.stem} has {len(pictures)} pictures; GALLERY asks for another one.")
    path = source.parent.parent / "gallery" / f"{source.name[:2]}.png"
    return path, base64.b64decode(pictures[GALLERY[source.name[:2]]])


def gallery_problems(source: Path) -> list[str]:
    """Why the gallery does not show what a notebook does; nothing where it does."""
    try:
        shown = gallery(source)
    except BuildError as error:
        return [str(error)]
    if shown is None or (shown[0].exists() and shown[0].read_bytes() == shown[1]):
        return []
    return [f"gallery/{shown[0].name} is not the picture of {target(source).name}"]


def check(chosen: Sequence[Path], folder: Path = FOLDER) -> list[str]:
    """All that is wrong with committed notebooks: outdated, left over, or against the rules of the lint."""
    wrong = []
    for source in chosen:
        path = target(source)
        wrong += stale(source)
        if path.exists():
            found = problems(path)
            wrong += found if found else gallery_problems(source)
    known = {target(source) for source in sources(folder=folder)}
    return wrong + [f"{path.name} has no source" for path in sorted(folder.glob("*.ipynb")) if path not in known]


def build(source: Path) -> float:
    """Execute a source and write its notebook, unless something is wrong with it. Raises BuildError."""
    notebook = convert(source)
    took = execute(notebook, source.stem)
    path = target(source)
    unfinished = path.with_suffix(".ipynb.tmp")
    try:
        nbformat.write(notebook, unfinished)
        wrong = problems(unfinished)
        if wrong:
            raise BuildError("\n".join(wrong))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    shown = gallery(source)
    if shown:
        shown[0].parent.mkdir(exist_ok=True)
        shown[0].write_bytes(shown[1])
    return took


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where something is wrong with a notebook, 2 for input that makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.build", description="Build the notebooks, or check them."
    )
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="such as 00 05; all of them unless given")
    parser.add_argument("--check", action="store_true", help="run nothing, say what is outdated or against the rules")
    options = parser.parse_args(arguments)
    try:
        chosen = sources(options.numbers)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        wrong = check(chosen)
        print("\n".join(wrong) or f"{len(chosen)} notebooks are current")
        return 1 if wrong else 0
    for source in chosen:
        try:
            took = build(source)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{target(source).name}  {took:.0f} s  {target(source).stat().st_size // 1024} KB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
