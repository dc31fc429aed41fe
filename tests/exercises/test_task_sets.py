"""Tasks without answers: written and read again, and the six that come with minisd."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from minisd.cli import main
from minisd.errors import FileFormatError, InputError
from minisd.exercises import task_sets
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.checking import check_solution
from minisd.exercises.task_sets import GRADED, read_set, read_task, write_task

TASKS = read_set()
README = (GRADED.parent / "README.md").read_text()


@pytest.mark.parametrize("name", ["guide", "group_norm", "alpha_bars"])
def test_a_task_that_is_written_and_read_judges_alike(name: str, tmp_path: Path) -> None:
    exercise = EXERCISES[name]
    write_task(exercise, tmp_path / name)
    again = read_task(tmp_path / name)
    assert again.starter == exercise.starter
    for solution in exercise.variants:
        assert check_solution(again, solution).state == "done"
    for mistake in exercise.mistakes:
        report = check_solution(again, mistake.wrong)
        assert report.state == "failing"
        assert len(report.lines) == 1  # no mistake is known


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="etas of 'three etas' is list, expected a tensor or a number"):
        write_task(EXERCISES["imagic_mix"], tmp_path / "x")
    with pytest.raises(FileFormatError, match="holds no task"):
        read_task(tmp_path / "none")
    with pytest.raises(InputError, match="has no tasks"):
        read_set(tmp_path)
    write_task(EXERCISES["guide"], tmp_path / "guide")
    with pytest.raises(InputError, match="its own cases alone"):
        read_task(tmp_path / "guide").reference(torch.ones(2, 1), 3.0)


@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_of_minisd(name: str) -> None:
    """The first argument alone is never the answer, and the starter file has its place in the guide."""
    exercise = TASKS[name]
    assert check_solution(exercise, lambda *arguments: arguments[0]).state == "failing"
    assert f"| {exercise.number} | `{name}` {exercise.title} | {exercise.notebook} |" in README
    assert f"def {name}(" in exercise.starter
    assert len(exercise.hints) == 3
    for case in exercise.cases():
        expected = exercise.reference(*case.arguments)
        assert isinstance(expected, Tensor)
        assert expected.isfinite().all()


def test_the_library_has_no_function_of_these_names() -> None:
    root = Path(task_sets.__file__).parents[1]
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(f"def {name}" in text for name in TASKS), path


def test_packing_and_grading_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["exercises", "pack", "--tasks", "graded"]) == 0
    assert "6 exercises" in capsys.readouterr().out
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "someone.py").write_text("def midpoint_step(x, *others):\n    return x\n")
    assert main(["exercises", "grade", "--tasks", "graded", "--only", "105", "--submissions", "in"]) == 0
    text = (tmp_path / "grades" / "someone.txt").read_text()
    assert "midpoint_step: failing, 0 of 3" in text
    assert "of your numbers differ" in text
    assert main(["exercises", "grade", "--tasks", "none", "--submissions", "in"]) == 2
    assert "none has no tasks" in capsys.readouterr().err
