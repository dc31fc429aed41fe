"""The committed notebooks are up to date, follow the rules, are listed, and run."""

import re
from pathlib import Path

import nbformat
import pytest

from notebooks import build
from notebooks.lint import problems

SOURCES = build.sources()
TABLE = (build.FOLDER / "README.md").read_text(encoding="utf-8")


def test_they_are_up_to_date_and_follow_the_rules() -> None:
    assert build.check(SOURCES) == [], "run: python -m notebooks.build"


def test_the_table_lists_them() -> None:
    rows = re.findall(r"^\| \[(\d\d)\]\(([\w.]+)\) \| ([^|]+) \| [^|]+ \| \d+ \|$", TABLE, re.MULTILINE)
    titles = [source.read_text(encoding="utf-8").splitlines()[1] for source in SOURCES]
    assert [f"# # {number} · {title}" for number, _, title in rows] == titles
    assert [name for _, name, _ in rows] == [build.target(source).name for source in SOURCES]


def test_the_gallery_is_shown() -> None:
    """Three images in the README, the others below the table; each leads to its notebook."""
    readme = (build.ROOT / "README.md").read_text(encoding="utf-8")
    first = re.findall(r"\(notebooks/gallery/(\d\d)\.png\)\]\(notebooks/\1_\w+\.ipynb\)", readme)
    others = re.findall(r"\(gallery/(\d\d)\.png\)\]\(\1_\w+\.ipynb\)", TABLE)
    assert len(first) == 3
    assert sorted(first + others) == sorted(build.GALLERY)


def test_the_readme_leads_to_the_table() -> None:
    assert "](notebooks/README.md)" in (build.ROOT / "README.md").read_text(encoding="utf-8")


def test_every_number_is_planned_once() -> None:
    numbers = re.findall(r"^\| \[?(\d\d)\]?", TABLE, re.MULTILINE)
    assert numbers == sorted(set(numbers))


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_they_run_within_their_budget(source: Path, tmp_path: Path) -> None:
    """All claims hold: a false claim is an error, and the lint reports warnings."""
    notebook = build.convert(source)
    build.execute(notebook, source.stem, seconds=4 * build.BUDGET)  # CI may be slow, and gives each test one core
    path = tmp_path / build.target(source).name
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    assert [each for each in problems(path) if "has no target" not in each] == []  # links need notebooks/
