"""The README keeps its word: the layout table names what is there, with line counts that are about right."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def lines(path: Path) -> int:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sum(len(file.read_text().splitlines()) for file in files)


def test_the_layout_table_is_true() -> None:
    rows = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", README, re.MULTILINE)
    assert len(rows) > 15
    for name, count in rows:
        assert (ROOT / name).exists(), name
        assert abs(lines(ROOT / name) - int(count)) <= max(20, 0.15 * int(count)), (
            f"{name} has {lines(ROOT / name)} lines"
        )


def test_every_module_is_in_the_layout_table() -> None:
    names = re.findall(r"^\| `([\w/.]+)` \|", README, re.MULTILINE)
    listed = [ROOT / name for name in names]
    for package in ("minisd", "weights_loader"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py" or path.parent.name == "weights_loader":
                assert any(path == each or each in path.parents for each in listed), path.relative_to(ROOT)


def test_pictures_in_it_exist() -> None:
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name
