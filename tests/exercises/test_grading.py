"""Grading: right, wrong, broken and hostile submissions, and the files that are written."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from minisd.cli import main
from minisd.errors import InputError
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.grading import as_text, grade_all, submissions, write_grades
from minisd.exercises.grading_process import suspicious

GUIDE = "def guide(both, scale):\n    u, c = both.chunk(2)\n    return u + scale * (c - u)\n"
SUBMITTED = {
    "right": GUIDE,
    "wrong": GUIDE.replace("return u +", "return c +"),
    "todo": EXERCISES["guide"].starter,
    "syntax": "def guide(both, scale)\n    return both\n",
    "hangs": "def guide(both, scale):\n    while True:\n        pass\n",
    "crashes": "import torch\n\n\ndef guide(both, scale):\n    torch.empty(10**12)\n    return both\n",
    "peeks": "from minisd.exercises.catalogue import EXERCISES\nguide = EXERCISES['guide'].reference\n",
    "writes": "import torch\n\n\ndef guide(both, scale):\n    torch.save(both, 'stolen.pt')\n    return both\n",
    "prints": 'print(\'{"exercise": "guide", "state": "done", "lines": [], "notes": []}\')\n'
    + GUIDE.replace("+ scale", "- scale"),
    "leaves": "import os\nos.kill(os.getppid(), 9)\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("submissions")
    for name, text in SUBMITTED.items():
        (path / name).mkdir()
        (path / name / "guide.py").write_text(text)
    return path


def test_a_class_is_graded(folder: Path, tmp_path: Path) -> None:
    graded = {each.name: each for each in grade_all(folder, [EXERCISES["guide"]], seconds=60)}
    assert {name: each.grades[0].state for name, each in graded.items()} == {
        "right": "done", "wrong": "failing", "todo": "to do", "syntax": "failing", "hangs": "failing",
        "crashes": "failing", "peeks": "failing", "writes": "failing", "prints": "failing", "leaves": "failing",
    }  # fmt: skip
    assert [name for name, each in graded.items() if each.points] == ["right"]
    assert {name: each.notes for name, each in graded.items() if each.notes} == {
        "peeks": ["it imports minisd.exercises.catalogue"],
        "writes": ["it writes a file (open)"],
        "leaves": ["it imports os"],
    }
    lines = {name: each.grades[0].lines for name, each in graded.items()}
    assert "likely: the way begins at the prediction with the prompt" in lines["wrong"][1]
    assert lines["syntax"] == ["line 1: expected ':'."]
    assert "does a loop never end?" in lines["hangs"][0]
    assert lines["crashes"][0].startswith("line 5: RuntimeError")
    assert not (folder / "writes" / "stolen.pt").exists()

    write_grades(list(graded.values()), tmp_path)
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "grades.csv").open())}
    assert float(rows["right"]["points"]) == float(rows["right"]["guide"]) == EXERCISES["guide"].level
    assert rows["peeks"]["notes"] == "it imports minisd.exercises.catalogue"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["right"]["tests"][0] == {"name": "guide", "score": 1, "max_score": 1, "output": "all cases agree"}
    (case,) = ElementTree.parse(tmp_path / "wrong.xml").getroot()
    assert case.get("name") == "guide"
    assert "likely" in str(case.find("failure").text)  # type: ignore[union-attr]
    assert "right: 1 of 1 points" in as_text(graded["right"])
    assert (tmp_path / "leaves.txt").read_text().endswith("note: it imports os\n")


def test_a_process_that_takes_too_long_is_ended(folder: Path) -> None:
    (graded,) = [each for each in grade_all(folder, [EXERCISES["guide"]], seconds=1, jobs=10) if each.name == "right"]
    assert graded.points == 0
    assert graded.notes == ["it took longer than 1 seconds"]


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "someone").mkdir()
    (graded,) = grade_all(tmp_path, [EXERCISES["guide"]])
    assert graded.grades[0].state == "missing"
    with pytest.raises(InputError, match="is no folder"):
        submissions(tmp_path / "none")
    with pytest.raises(InputError, match="has no submissions"):
        submissions(tmp_path / "someone")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch\nimport math\n", []),
        ("from torch.nn import functional as F\n", []),
        ("import subprocess as s\n", ["it imports subprocess"]),
        ("x = eval('1')\n", ["it uses eval"]),
        ("().__class__.__bases__\n", ["it uses __bases__", "it uses __class__"]),
        ("def f(:\n", []),
    ],
)
def test_what_is_suspicious(text: str, expected: list[str]) -> None:
    assert sorted(suspicious(text)) == expected


def test_the_commands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["exercises", "pack", "--only", "guide, 4"]) == 0
    assert "exercises.zip  2 exercises" in capsys.readouterr().out
    assert main(["exercises", "pack"]) == 2
    assert "exercises.zip" in capsys.readouterr().err
    few = tmp_path / "few"
    few.mkdir()
    (few / "right.py").write_text(GUIDE)
    assert main(["exercises", "grade", "--only", "guide", "--submissions", str(few)]) == 0
    assert "right                        1" in capsys.readouterr().out
    assert (tmp_path / "grades" / "right.xml").is_file()
    assert main(["exercises", "grade"]) == 2
    assert "grade needs --submissions FOLDER" in capsys.readouterr().err
    assert main(["exercises", "grade", "--submissions", str(few), "--jobs", "0"]) == 2
    assert "--jobs is 0" in capsys.readouterr().err
