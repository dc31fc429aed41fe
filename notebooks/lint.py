"""The rules of a notebook: what every reader, on GitHub as well as on a laptop, can count on."""

import json
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

LARGEST, LARGEST_OUTPUT = 1_000_000, 400_000  # bytes
OPENING = ("**You will**", "**Needs**", "**Takes**")
PICTURES = ("image/png", "image/gif", "image/jpeg", "image/svg+xml")
LOCAL = {
    "a path of this machine": r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|opt|var|private)/|[A-Z]:\\\\",
    "an address in memory": r"\b0x[0-9a-f]{6,}",
    "a time of day": r"\b\d{1,2}:\d\d:\d\d\b",
    "a terminal colour": "\x1b\\[",
}
NUMBER = r"(?<![\w.,/])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)"


def problems(path: Path) -> list[str]:
    """What is wrong with a notebook file, a sentence each."""
    text = path.read_text(encoding="utf-8")
    try:
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        return [f"{path.name}: is no valid notebook ({str(error).strip().splitlines()[0]})"]
    size = len(text.encode())
    found = [f"is {size / 1e6:.2f} MB large, at most {LARGEST / 1e6:.0f} MB are allowed"] if size > LARGEST else []
    found += structure(notebook) + outputs(notebook) + links(notebook, path.parent) + numbers(notebook)
    return [f"{path.name.removesuffix('.tmp')}: {each}" for each in found]


def structure(notebook: NotebookNode) -> list[str]:
    """Opening, questions, summary, order of execution, nothing hidden in the metadata."""
    found = []
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = notebook.cells[0].source if notebook.cells and notebook.cells[0].cell_type == "markdown" else ""
    if not re.match(r"# \S", first):
        found.append("does not begin with its title, `# ...`")
    if sum(len(re.findall(r"^# ", _prose(each), re.MULTILINE)) for each in prose) > 1:
        found.append("has more than one title of the first order")
    found += [f"its first cell does not say {each}" for each in OPENING if each not in first]
    last = prose[-1] if prose else ""
    if "## Summary" not in last or not re.search(r"\]\(\.\./minisd/", last):
        found.append("does not end with `## Summary` and links to the code")
    questions = sum(each.count("**Predict, then run**") for each in prose)
    answers = sum(each.count("<details>") for each in prose)
    if not questions or answers < questions:
        found.append(
            f"has {questions} times `**Predict, then run**` and {answers} folded answers, expected one for each"
        )
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.count("<details>") != cell.source.count("</details>"):
            found.append(f"cell {cell.id} has a <details> without its end, or an end without it")
        if cell.metadata:
            found.append(f"cell {cell.id} has metadata ({', '.join(cell.metadata)})")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not executed from top to bottom in one go")
    if "widgets" in notebook.metadata:
        found.append("holds widget state, which GitHub refuses to render")
    return found


def outputs(notebook: NotebookNode) -> list[str]:
    """Nothing failed, nothing warns, nothing is of this machine; every picture has an alternative text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            where = f"an output of cell {cell.id}"
            if output.output_type == "error":
                found.append(f"{where} is an error, {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"{where} is a warning: {output.text.strip().splitlines()[-1]}")
            if len(json.dumps(output)) > LARGEST_OUTPUT:
                found.append(f"{where} has {len(json.dumps(output))} bytes, at most {LARGEST_OUTPUT} are allowed")
            for kind in output.get("data", {}):
                if kind in PICTURES and len(output.metadata.get(kind, {}).get("alt", "").split()) < 4:
                    found.append(f"{where} is a picture without an alternative text; show it with notebooks.lesson")
                if "widget" in kind:
                    found.append(f"{where} is a widget, which GitHub refuses to render")
            for name, pattern in LOCAL.items():
                if re.search(pattern, _text(output)):
                    found.append(f"{where} holds {name}")
    return found


def links(notebook: NotebookNode, folder: Path) -> list[str]:
    """Links within the repository lead somewhere; pictures in Markdown have an alternative text, and lie in files."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for bang, words, goal in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", _prose(cell.source)):
            if bang and len(words.split()) < 4:
                found.append(f"a picture in cell {cell.id} has no alternative text")
            if goal.startswith("data:"):
                found.append(f"a picture in cell {cell.id} is written into the text")
            elif not re.match(r"https?://|#", goal) and not _exists(folder / goal.split("#")[0]):
                found.append(f"a link in cell {cell.id} leads nowhere: {goal}")
    return found


def _exists(path: Path) -> bool:
    """Whether there is such a file, or will be, as the notebook of a source."""
    return path.exists() or (path.suffix == ".ipynb" and (path.parent / "src" / f"{path.stem}.py").exists())


def numbers(notebook: NotebookNode) -> list[str]:
    """Every number in prose of two digits or more stands in the code or in what it prints."""
    seen = ""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            seen += "\n".join([cell.source, *(_text(output) for output in cell.outputs)]) + "\n"
    known = {_plain(each) for each in re.findall(r"\d[\d,_]*(?:\.\d+)?", seen)}
    found = []
    for cell in notebook.cells[1:]:  # the first says how long it takes
        if cell.cell_type == "markdown":
            text = re.sub(
                r"\]\([^)]*\)|<[^>]*>|(?:\b[A-Z]\w+|al\.) \d{4}\b|\b\d\d ·|[Nn]otebooks?\s+\d\d(?:\s+and\s+\d\d)?",
                "",
                _prose(cell.source),
            )
            for each in re.findall(NUMBER, text):
                if len(each) > 1 and _plain(each) not in known:
                    found.append(f"{each} in the text of cell {cell.id} is neither printed nor in the code")
    return found


def _plain(number: str) -> str:
    plain = number.replace(",", "").replace("_", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _prose(markdown: str) -> str:
    """Markdown without its code."""
    return re.sub(r"```.*?```|`[^`]*`", "", markdown, flags=re.DOTALL)


def _text(output: NotebookNode) -> str:
    """All that can be read in an output."""
    data = output.get("data", {})
    return output.get("text", "") + "".join(value for kind, value in data.items() if kind.startswith("text/"))
