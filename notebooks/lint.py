"""The rules that every notebook follows, so that it reads well on GitHub and on a laptop."""

import json
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

LARGEST, LARGEST_OUTPUT = 1_000_000, 400_000  # bytes
OPENING = ("**You will**", "**Needs**", "**Takes**")
CLOSING = ["What you can now explain", "Your turn", "Summary"]  # the last sections of a lesson
EXPLAINED = r"^<details><summary>[^\n]+\?</summary>\n\n\S.*?\n\n</details>$"  # a question with its folded answer
IMAGES = ("image/png", "image/gif", "image/jpeg", "image/svg+xml")
LOCAL = {
    "a path of this machine": r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|opt|var|private)/|[A-Z]:\\\\",
    "an address in memory": r"\b0x[0-9a-f]{6,}",
    "a time of day": r"\b\d{1,2}:\d\d:\d\d\b",
    "a terminal colour": "\x1b\\[",
}
NUMBER = r"(?<![\w.,/])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)"


def problems(path: Path) -> list[str]:
    """The problems of a notebook file, one sentence each."""
    text = path.read_text(encoding="utf-8")
    try:
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        return [f"{path.name}: is not a valid notebook ({str(error).strip().splitlines()[0]})"]
    size = len(text.encode())
    found = [f"has {size / 1e6:.2f} MB, expected at most {LARGEST / 1e6:.0f} MB"] if size > LARGEST else []
    found += structure(notebook) + outputs(notebook) + links(notebook, path.parent) + numbers(notebook)
    return [f"{path.name.removesuffix('.tmp')}: {each}" for each in found]


def structure(notebook: NotebookNode) -> list[str]:
    """Problems of the opening, the questions, the last sections, the order of execution and the metadata."""
    found = []
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = notebook.cells[0].source if notebook.cells and notebook.cells[0].cell_type == "markdown" else ""
    if not re.match(r"# \S", first):
        found.append("does not begin with its title, `# ...`")
    if sum(len(re.findall(r"^# ", _prose(each), re.MULTILINE)) for each in prose) > 1:
        found.append("has more than one title `# ...`")
    found += [f"its first cell does not contain {each}" for each in OPENING if each not in first]
    last = prose[-1] if prose else ""
    if "## Summary" not in last or not re.search(r"\]\(\.\./minisd/", last):
        found.append("does not end with `## Summary` and a link to the code in ../minisd/")
    text = "\n\n".join(prose)
    if re.findall(r"^## (.+)$", text, re.MULTILINE)[-3:] != CLOSING:
        found.append(f"does not end with the sections {', '.join(f'`## {each}`' for each in CLOSING)}")
    explain, turn = (_section(text, heading) for heading in CLOSING[:2])
    if (count := len(re.findall(EXPLAINED, explain, re.MULTILINE | re.DOTALL))) != 5 or explain.count("<details>") != 5:
        found.append(f"has {count} questions with a folded answer in `## {CLOSING[0]}`, expected 5")
    if "](../minisd/exercises/README.md)" not in turn:
        found.append(f"has no link to the exercises in `## {CLOSING[1]}`")
    questions, answers = (text.count(each) - explain.count(each) for each in ("**Predict, then run**", "<details>"))
    if not questions or answers < questions:
        found.append(
            f"has {questions} `**Predict, then run**` and {answers} folded answers, expected a question with an answer"
        )
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.count("<details>") != cell.source.count("</details>"):
            found.append(f"cell {cell.id} has a <details> or </details> without its counterpart")
        if cell.metadata:
            found.append(f"cell {cell.id} has metadata ({', '.join(cell.metadata)})")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not executed once from top to bottom")
    if "widgets" in notebook.metadata:
        found.append("has widget state, which GitHub cannot render")
    return found


def _section(text: str, heading: str) -> str:
    """The text below a heading `## ...`, up to the next one."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def outputs(notebook: NotebookNode) -> list[str]:
    """Problems of the outputs: errors, warnings, size, widgets, paths of this machine, missing alternative texts."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            where = f"an output of cell {cell.id}"
            if output.output_type == "error":
                found.append(f"{where} is an error, {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"{where} is a warning: {output.text.strip().splitlines()[-1]}")
            if len(json.dumps(output)) > LARGEST_OUTPUT:
                found.append(f"{where} has {len(json.dumps(output))} bytes, expected at most {LARGEST_OUTPUT}")
            for kind in output.get("data", {}):
                if kind in IMAGES and len(output.metadata.get(kind, {}).get("alt", "").split()) < 4:
                    found.append(f"{where} is an image without an alternative text; show it with lesson.py")
                if "widget" in kind:
                    found.append(f"{where} is a widget, which GitHub cannot render")
            for name, pattern in LOCAL.items():
                if re.search(pattern, _text(output)):
                    found.append(f"{where} contains {name}")
    return found


def links(notebook: NotebookNode, folder: Path) -> list[str]:
    """Problems of Markdown links: missing targets, images without alternative text or not in a file."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for bang, words, target in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", _prose(cell.source)):
            if bang and len(words.split()) < 4:
                found.append(f"an image in cell {cell.id} has no alternative text")
            if target.startswith("data:"):
                found.append(f"an image in cell {cell.id} is written into the text; put it in a file")
            elif not re.match(r"https?://|#", target) and not _exists(folder / target.split("#")[0]):
                found.append(f"a link in cell {cell.id} has no target: {target}")
    return found


def _exists(path: Path) -> bool:
    """Whether the file exists, or is a notebook that has a source."""
    return path.exists() or (path.suffix == ".ipynb" and (path.parent / "src" / f"{path.stem}.py").exists())


def numbers(notebook: NotebookNode) -> list[str]:
    """Numbers of two or more digits in prose that are neither in the code nor in its output."""
    seen = ""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            seen += "\n".join([cell.source, *(_text(output) for output in cell.outputs)]) + "\n"
    known = {_plain(each) for each in re.findall(r"\d[\d,_]*(?:\.\d+)?", seen)}
    found = []
    for cell in notebook.cells[1:]:  # the first cell says how long the notebook takes
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
    """All readable text of an output."""
    data = output.get("data", {})
    return output.get("text", "") + "".join(value for kind, value in data.items() if kind.startswith("text/"))
