"""The notebooks that are committed: current, within the rules, listed, and they run."""

import re
from pathlib import Path

import nbformat
import pytest

from notebooks import build
from notebooks.lint import problems

SOURCES = build.sources()
TABLE = (build.FOLDER / "README.md").read_text(encoding="utf-8")


def test_they_are_current_and_within_the_rules() -> None:
    assert build.check(SOURCES) == [], "run: python -m notebooks.build"


def test_the_table_lists_them() -> None:
    rows = re.findall(r"^\| \[(\d\d)\]\(([\w.]+)\) \| ([^|]+) \| [^|]+ \| \d+ \|$", TABLE, re.MULTILINE)
    titles = [source.read_text(encoding="utf-8").splitlines()[1] for source in SOURCES]
    assert [f"# # {number} · {title}" for number, _, title in rows] == titles
    assert [name for _, name, _ in rows] == [build.target(source).name for source in SOURCES]


def test_the_readme_has_the_same_table() -> None:
    rows = [row.replace("](", "](notebooks/") for row in TABLE.splitlines() if row.startswith("| [")]
    readme = (build.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in readme if re.match(r"\| \[\d\d\]\(notebooks/", row)] == rows


def test_the_readme_shows_the_gallery() -> None:
    readme = (build.ROOT / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\(notebooks/gallery/(\d\d)\.png\)\]\(notebooks/\1_\w+\.ipynb\)", readme)
    assert linked == sorted(build.GALLERY)


def test_every_number_is_planned_once() -> None:
    numbers = re.findall(r"^\| \[?(\d\d)\]?", TABLE, re.MULTILINE)
    assert numbers == sorted(set(numbers))


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_they_run_within_their_budget(source: Path, tmp_path: Path) -> None:
    """What they claim holds: a claim that does not is an error, and so is a warning to the lint."""
    notebook = build.convert(source)
    build.execute(notebook, source.stem, seconds=2 * build.BUDGET)  # CI may be slow
    path = tmp_path / build.target(source).name
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    assert [each for each in problems(path) if "leads nowhere" not in each] == []  # the links work from their folder
