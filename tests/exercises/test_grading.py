"""Grading: every kind of submission gets its state and its sentence, and costs no other exercise its points."""

import csv
import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest
from support.exercise_class import BAD, RIGHT, Bad, write_submission

from minisd.cli import main
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.grading import process
from minisd.exercises.grading.grades import Grade, Graded, Limits, grade_all
from minisd.exercises.grading.results import as_csv, as_junit
from minisd.exercises.grading.submissions import submissions_in

LIMITED = pytest.mark.skipif(not process.FORKS, reason="limits and forks as on Linux")
SECONDS = 2.0


def learners() -> dict[str, dict[str, Bad]]:
    """All bad files, as few learners as possible: each has one for some exercises, and is right in the others."""
    lists: dict[str, list[Bad]] = defaultdict(list)
    for bad in BAD:
        lists[bad.exercise].append(bad)
    count = max(map(len, lists.values()))
    return {f"learner{k}": {name: bads[k] for name, bads in lists.items() if k < len(bads)} for k in range(count)}


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Grade]]:
    folder = tmp_path_factory.mktemp("class")
    for learner, bads in learners().items():
        write_submission(folder / learner, RIGHT | {name: bad.code for name, bad in bads.items()})
    exercises = [EXERCISES[name] for name in RIGHT]
    found = grade_all(submissions_in(folder), exercises, 7, Limits(SECONDS, 512), 1, lambda each: None)
    return {each.learner: {grade.exercise.name: grade for grade in each.grades} for each in found}


@LIMITED
@pytest.mark.parametrize("bad", BAD, ids=[bad.learner for bad in BAD])
def test_each_bad_file_is_graded_as_such(bad: Bad, graded: dict[str, dict[str, Grade]]) -> None:
    learner = next(name for name, bads in learners().items() if bads.get(bad.exercise) == bad)
    grade = graded[learner][bad.exercise]
    assert grade.state == bad.state, grade.message
    assert bad.message in grade.message
    assert grade.points == (grade.exercise.points if bad.state == "done" else 0)
    assert not Path("/tmp/minisd-x").exists()


@LIMITED
def test_what_is_right_is_done_whatever_came_before_it(graded: dict[str, dict[str, Grade]]) -> None:
    for learner, bads in learners().items():
        for name in RIGHT.keys() - bads.keys():
            assert graded[learner][name].state == "done", graded[learner][name].message


@LIMITED
def test_without_forks_each_exercise_has_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FORKS", False)
    write_submission(tmp_path / "anna", {"add_noise": "import os\nos._exit(3)\n", "guide": RIGHT["guide"]})
    exercises = [EXERCISES["add_noise"], EXERCISES["guide"]]
    (anna,) = grade_all(submissions_in(tmp_path), exercises, 7, Limits(), 1, lambda each: None)
    assert [each.state for each in anna.grades] == ["ended", "done"]
    assert anna.grades[0].message == "it ended its process with the exit code 3."


WRONG = "def dynamic_threshold(x0, share):\n    return x0\n"
ANSWER = "def dynamic_threshold(x0, share):\n    return x0.clamp(-share, share)\n"  # not that of the task
MISTAKE = "MISTAKES = {'dynamic_threshold': [('nothing is limited', lambda x0, share: x0)]}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the grades of two learners of one name."""
    folder = tmp_path_factory.mktemp("files")
    right = {"guide": RIGHT["guide"], "dynamic_threshold": ANSWER}
    write_submission(folder / "class" / "anna", right)
    (folder / "class" / "anna.py").write_text(WRONG + RIGHT["guide"])
    (folder / "answers.py").write_text(ANSWER + MISTAKE)
    names = "guide,dynamic_threshold,guide"
    options = ["--exercises", names, "--answers", str(folder / "answers.py"), "--seed", "5", "-o", str(folder / "out")]
    assert main(["exercises", "grade", str(folder / "class"), *options]) == 0
    return folder / "out"


def test_the_csv_has_a_row_for_each_learner(place: Path) -> None:
    rows = {row["learner"]: row for row in csv.DictReader((place / "grades.csv").open(encoding="utf-8"))}
    assert list(rows) == ["anna", "anna.py"]
    assert list(rows["anna"]) == ["learner", "score", "max_score", "guide", "dynamic_threshold", "notes"]
    assert [*rows["anna"].values()] == ["anna", "3", "3", "1", "2", ""]
    assert [*rows["anna.py"].values()] == ["anna.py", "1", "3", "1", "0", ""]


def test_what_an_instructor_should_look_at_is_named() -> None:
    """In the notes of the CSV, and as errors, not failures; a name is no formula, and markup is no markup."""
    exercise = EXERCISES["guide"]
    named = Graded("+anna", (Grade(exercise, "refused", "line 1: it <imports>."), Grade(exercise, "ended", "a & b.")))
    (row,) = csv.DictReader(as_csv([named]).splitlines())
    assert row["learner"] == "'+anna"
    assert row["notes"] == "guide refused: line 1: it <imports>.; guide ended: a & b."
    (suite,) = ET.fromstring(as_junit([named], 1))
    assert (suite.get("failures"), suite.get("errors")) == ("0", "2")
    assert [each.get("message") for each in suite.iter("error")] == ["line 1: it <imports>.", "a & b."]


def test_the_junit_file_is_read_by_others(place: Path) -> None:
    suites = {each.get("name"): each for each in ET.parse(place / "junit.xml").getroot()}
    assert set(suites) == {"anna", "anna.py"}
    assert {name: suites["anna.py"].get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2", "failures": "1", "errors": "0", "skipped": "0"
    }  # fmt: skip
    cases = {each.get("name"): each for each in suites["anna.py"].iter("testcase")}
    failure = cases["dynamic_threshold"].find("failure")
    assert failure is not None
    assert "likely: nothing is limited." in str(failure.get("message"))
    assert cases["guide"].find("failure") is None
    assert suites["anna"].find("properties/property[@name='seed']").get("value") == "5"  # type: ignore[union-attr]


def test_gradescopes_file_has_its_documented_form(place: Path) -> None:
    found = json.loads((place / "learners" / "anna.py" / "results.json").read_text())
    assert {type(each["score"]) for each in found["tests"]} == {int}
    assert found == {
        "score": 1,
        "output": "1 of 3 points",
        "visibility": "visible",
        "extra_data": {"seed": 5, "max_score": 3},
        "tests": [
            {"name": "guide", "number": "10", "score": 1, "max_score": 1, "status": "passed",
             "output": "done: all cases agree."},
            {"name": "dynamic_threshold", "number": "105", "score": 0, "max_score": 2, "status": "failed",
             "output": found["tests"][1]["output"]},
        ],
    }  # fmt: skip
    assert found["tests"][1]["output"].startswith("failing: a faint, a strong and a very strong image: ")
    text = (place / "learners" / "anna" / "feedback.txt").read_text()
    assert text.startswith("guide: 1 of 1 points\n  done: all cases agree.\n")
    assert text.endswith("3 of 3 points\n")


def test_grades_are_replaced_only_if_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place.parent / "class"
    assert main(["exercises", "grade", str(folder), "--exercises", "guide", "-o", str(place)]) == 8
    assert "is not empty; choose another folder, or pass --overwrite" in capsys.readouterr().err


def test_mistakes_of_the_instructor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handed_in, empty, file = tmp_path / "class", tmp_path / "empty", tmp_path / "file"
    write_submission(handed_in / "anna", {"guide": RIGHT["guide"], "dynamic_threshold": ANSWER})
    write_submission(tmp_path / "other" / "anna", {"essay": ""})
    empty.mkdir()
    file.write_text("x")
    (tmp_path / "nothing.py").write_text("x = 1\n")
    (tmp_path / "fails.py").write_text("def dynamic_threshold(x0, share):\n    raise KeyError('no')\n")
    (tmp_path / "number.py").write_text("def dynamic_threshold(x0, share):\n    return 3\n")
    (tmp_path / "broken.py").write_text("def\n")
    (tmp_path / "mistakes.py").write_text(ANSWER + "MISTAKES = [1]\n")
    task = [str(handed_in), "--exercises", "dynamic_threshold"]
    out = ["-o", str(tmp_path / "out")]
    for arguments, message in (
        ([], "grade needs the folder of the submissions: minisd exercises grade FOLDER"),
        ([str(tmp_path / "no")], "does not exist; expected a folder with one file or one folder for each learner"),
        ([str(file)], "is a file; expected a folder"),
        ([str(empty)], "is empty; expected one file or one folder for each learner"),
        ([str(tmp_path / "other")], "has no file of any exercise"),
        ([str(handed_in), "--exercises", "gide"], "there is no exercise 'gide'; did you mean guide"),
        ([str(handed_in), "--exercises", ","], "--exercises names none"),
        ([str(handed_in), "--jobs", "0"], "--jobs is 0, expected a whole number in 1..256"),
        ([str(handed_in), "--seconds", "0"], "--seconds is 0.0, expected"),
        ([str(handed_in), "--seed", "-1"], "--seed is -1, expected"),
        (task, "dynamic_threshold is a graded task, whose answer is not in the library; add --answers FILE"),
        ([*task, "--answers", str(tmp_path / "no.py")], "which is no file"),
        ([*task, "--answers", str(tmp_path / "nothing.py")], "has no function dynamic_threshold"),
        ([*task, "--answers", str(tmp_path / "fails.py")], "fails in the case 'a faint"),
        ([*task, "--answers", str(tmp_path / "number.py")], "gives no finite tensor"),
        ([*task, "--answers", str(tmp_path / "broken.py")], "cannot be run (SyntaxError"),
        ([*task, "--answers", str(tmp_path / "mistakes.py")], "must be {name: [(sentence, function), ...]}"),
    ):
        assert main(["exercises", "grade", *arguments, *out]) == 2, arguments
        assert message in capsys.readouterr().err
    assert main(["exercises", "grade", str(handed_in), "-o", str(file)]) == 8
    assert "is a file, expected a folder" in capsys.readouterr().err


def test_what_is_handed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hw"
    assert main(["exercises", "pack", str(folder), "--exercises", "guide,churn_step"]) == 0
    printed = capsys.readouterr().out
    answers = (folder / "answers.py").as_posix()
    assert f"minisd exercises grade SUBMISSIONS --exercises guide,churn_step --answers {answers}\n" in printed
    names = sorted(path.name for path in (folder / "handout").iterdir())
    assert names == ["README.md", "churn_step.py", "guide.py"]
    page = (folder / "handout" / "README.md").read_text()
    assert "| `churn_step` A step of Euler's method with churn | 3 | 25 |" in page
    assert "{" not in page
    assert main(["exercises", "pack", str(folder)]) == 8
    assert "is not empty" in capsys.readouterr().err
    assert main(["exercises", "pack"]) == 2
    handed_in = tmp_path / "class"
    write_submission(handed_in / "anna", {"churn_step": ""})
    options = ["--answers", str(folder / "answers.py"), "-o", str(tmp_path / "out")]
    assert main(["exercises", "grade", str(handed_in), *options]) == 2
    assert "churn_step of " in capsys.readouterr().err  # it is not written yet
