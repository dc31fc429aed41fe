"""Build the notebooks: python -m notebooks.build [NUMBER ...] [--check | --text]

The builder converts src/NN_name.py, in percent format, to NN_name.ipynb and executes it. The notebook records hashes of
its source and of the embedded model, so --check can find notebooks that are out of date. Where only the text of a
source has changed, --text keeps the outputs of before.
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
GALLERY = {"04": 5, "07": 4, "15": 1, "16": 5, "18": 1, "21": 0}  # which image of a notebook READMEs show, from 0


class BuildError(ValueError):
    """A source cannot be built; the message says why in one sentence."""


def sources(numbers: Sequence[str] = (), folder: Path = FOLDER) -> list[Path]:
    """The sources in learning order, all or those of `numbers`. Raises BuildError for an unknown number."""
    found = sorted((folder / "src").glob("[0-9][0-9]_*.py"))
    known = [path.name[:2] for path in found]
    if len(set(known)) < len(known):
        raise BuildError(f"two sources have the same number: {', '.join(known)}; rename one of them.")
    for number in numbers:
        if number not in known:
            raise BuildError(f"unknown notebook {number!r}, expected one of {', '.join(known)}.")
    return [path for path in found if not numbers or path.name[:2] in numbers]


def target(source: Path) -> Path:
    """The path of the notebook that is built from a source."""
    return source.parent.parent / f"{source.stem}.ipynb"


def convert(source: Path) -> NotebookNode:
    """A source in percent format -> a notebook without outputs; deterministic. Raises BuildError."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{source.name} cannot be read as UTF-8 text: {error}.") from error
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    if len(parts) == 1 or parts[0].strip():
        raise BuildError(f"{source.name} does not begin with a cell; make `# %% [markdown]` its first line.")
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
                raise BuildError(f"{where} is not valid Python: {error.msg} in its line {error.lineno}.") from error
            cells.append(nbformat.v4.new_code_cell(body, id=name))
        else:
            raise BuildError(f"{where} begins with `# %%{kind}`, expected `# %%` or `# %% [markdown]`.")
    hashes = {"source": hashlib.sha256(text.encode()).hexdigest(), "model": model_hash("sticker-" in text)}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "minisd": hashes}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _uncommented(body: str, where: str) -> str:
    lines = body.split("\n")
    for line in lines:
        if line != "#" and not line.startswith("# "):
            raise BuildError(f"{where} is Markdown with the line {line!r}, expected `# ` at the start of each line.")
    return "\n".join(line[2:] for line in lines)


@cache
def model_hash(variants: bool) -> str:
    """A hash of what notebooks load of the embedded model and, with `variants`, of its task variants."""
    digest = hashlib.sha256()
    excluded = {
        "results.json",
        "tasks.json",
        "adapters",
        "preview",
        "fast.safetensors",
        *(() if variants else ("variants",)),
    }
    for path in sorted(MODEL.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt") and not excluded & set(path.relative_to(MODEL).parts):
            digest.update(path.relative_to(MODEL).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def execute(notebook: NotebookNode, name: str, seconds: int = BUDGET) -> float:
    """Run all cells in a new kernel, offline and on one thread; returns the run time in seconds.

    Raises BuildError if a cell fails or the run takes more than `seconds`.
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
        start = time.perf_counter()
        try:
            client.execute(env={**os.environ, **variables})
        except CellExecutionError as error:
            failed = next(
                cell for cell in notebook.cells if any(o.output_type == "error" for o in cell.get("outputs", []))
            )
            raise BuildError(f"{name}: cell {failed.id} failed with {error.ename}: {error.evalue}") from error
        except CellTimeoutError as error:
            raise BuildError(f"{name}: a cell ran for more than {seconds} s; reduce its work.") from error
        except DeadKernelError as error:
            raise BuildError(f"{name}: the kernel died, maybe out of memory; reduce what cells hold.") from error
        took = time.perf_counter() - start
    if took > seconds:
        raise BuildError(f"{name} took {took:.0f} s, expected at most {seconds}; reduce its work.")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            cell.metadata = NotebookNode()
    notebook.metadata.language_info = NotebookNode(name="python")  # the version would change from machine to machine
    return took


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with consecutive pieces of printed text joined: the kernel splits text anywhere."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def reuse(notebook: NotebookNode, built: Path) -> None:
    """Give a converted notebook the outputs of the built one. Raises BuildError unless code and model are the same."""
    before = nbformat.read(built, as_version=4) if built.exists() else nbformat.v4.new_notebook()
    new, old = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (notebook, before))
    same = [cell.source for cell in new] == [cell.source for cell in old]
    if not same or before.metadata.get("minisd", {}).get("model") != notebook.metadata.minisd.model:
        raise BuildError(f"{built.name}: its code or the model has changed; build it without --text.")
    for cell, known in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = known.outputs, known.execution_count


def stale(source: Path) -> list[str]:
    """The reasons to build the notebook of a source again; empty if it is up to date."""
    path = target(source)
    if not path.exists():
        return [f"{path.name} is missing"]
    try:
        notebook, expected = nbformat.read(path, as_version=4), convert(source)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [f"{path.name} cannot be compared with its source: {error}"]
    recorded = notebook.metadata.get("minisd", {})
    reasons = [
        f"{path.name}: its {part} has changed"
        for part, value in expected.metadata.minisd.items()
        if recorded.get(part) != value
    ]
    cells = [[(cell.id, cell.cell_type, cell.source) for cell in each.cells] for each in (notebook, expected)]
    return reasons or ([] if cells[0] == cells[1] else [f"{path.name}: its cells differ from its source"])


def gallery(source: Path) -> tuple[Path, bytes] | None:
    """The image of a built notebook that READMEs show, with its path; None if they show none."""
    if source.name[:2] not in GALLERY:
        return None
    cells = nbformat.read(target(source), as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    index = GALLERY[source.name[:2]]
    if index >= len(images):
        raise BuildError(f"{source.stem} has {len(images)} images, but GALLERY names image {index}, counted from 0.")
    path = source.parent.parent / "gallery" / f"{source.name[:2]}.png"
    return path, base64.b64decode(images[index])


def gallery_problems(source: Path) -> list[str]:
    """The problem if the gallery file differs from the image in the notebook; empty if they agree."""
    try:
        shown = gallery(source)
    except BuildError as error:
        return [str(error)]
    if shown is None or (shown[0].exists() and shown[0].read_bytes() == shown[1]):
        return []
    return [f"gallery/{shown[0].name} differs from the image in {target(source).name}"]


def check(chosen: Sequence[Path], folder: Path = FOLDER) -> list[str]:
    """All problems of the built notebooks: out of date, without a source, or against the rules of the lint."""
    wrong = []
    for source in chosen:
        path = target(source)
        wrong += stale(source)
        if path.exists():
            found = problems(path)
            wrong += found if found else gallery_problems(source)
    known = {target(source) for source in sources(folder=folder)}
    return wrong + [f"{path.name} has no source" for path in sorted(folder.glob("*.ipynb")) if path not in known]


def build(source: Path, only_text: bool = False) -> float:
    """Execute a source and write its notebook if it follows the rules. Returns seconds; raises BuildError.

    only_text: nothing is executed, the outputs of before are kept.
    """
    notebook, path, took = convert(source), target(source), 0.0
    if only_text:
        reuse(notebook, path)
    else:
        took = execute(notebook, source.stem)
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
    """The command. Returns 1 if a notebook has a problem, 2 for an unknown number."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.build", description="Build the notebooks, or check them."
    )
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="notebooks to build, such as 00 05; default: all")
    parser.add_argument("--check", action="store_true", help="run nothing; list outdated notebooks and broken rules")
    parser.add_argument("--text", action="store_true", help="run nothing; change the text and keep the outputs")
    options = parser.parse_args(arguments)
    try:
        chosen = sources(options.numbers)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        wrong = check(chosen)
        print("\n".join(wrong) or f"{len(chosen)} notebooks are up to date")
        return 1 if wrong else 0
    for source in chosen:
        try:
            took = build(source, options.text)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{target(source).name}  {took:.0f} s  {target(source).stat().st_size // 1024} KB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
