"""The parts of the grader: messages, what is seen in a source, inputs of a run, who handed in what."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minisd import exercises
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.checking import first_problem
from minisd.exercises.exercise import Exercise
from minisd.exercises.graded.catalogue import GRADED
from minisd.exercises.grading import runner, wire
from minisd.exercises.grading.grades import refused_names
from minisd.exercises.grading.source_check import imports_of_answers
from minisd.exercises.grading.submissions import NotReadable, Submission, submissions_in
from minisd.exercises.grading.watch import READABLE
from minisd.exercises.inputs import drawn_for
from minisd.exercises.learner_code import NotWritten, call, load

README = Path(exercises.__file__).with_name("README.md")


def sent(value: object) -> object:
    writer = wire.Writer()
    return wire.read(writer.message(writer.plain(value)))


def test_values_arrive_as_they_were() -> None:
    value = [None, True, -3, 0.1, math.inf, "ä\n\ud800", (1, [2]), {("a", 1): {"b": ()}}]
    assert sent(value) == value
    for tensor in (
        torch.rand(2, 3).T,
        torch.tensor(5),
        torch.ones(0, 3),
        torch.ones(2).bool(),
        torch.ones(3).bfloat16(),
    ):
        got = sent(tensor)
        assert isinstance(got, Tensor)
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert torch.equal(got, tensor)
    assert torch.isnan(sent(torch.tensor(math.nan)))  # type: ignore[arg-type]
    meta = sent(torch.ones(2, 3, device="meta"))
    assert isinstance(meta, Tensor)
    assert meta.device.type == "meta"
    for other in (nn.Linear(1, 1), torch.ones(2).to_sparse(), len, {1}):
        got = sent(other)
        assert type(got).__name__ == type(other).__name__
        assert type(got) is not type(other)


def test_a_tensor_that_claims_to_be_equal_is_sent_as_its_numbers() -> None:
    class Liar(Tensor):
        def __eq__(self, other: object) -> bool:  # type: ignore[override]
            return True

    got = sent(torch.zeros(2).as_subclass(Liar))
    assert type(got) is Tensor


def framed(text: bytes, rest: bytes = b"") -> bytes:
    return wire.HEAD.pack(len(text)) + text + rest


@pytest.mark.parametrize(
    "data",
    [
        b"", b"1234567", b"\xff" * 40, framed(b"{}"), framed(b"1", b"garbage"), framed(b"1", b"\xff" * 100),
        framed(b"[" * 100_000, wire.Writer().message(None)[12:]),
        *(framed(text, wire.Writer().message(None)[12:]) for text in (
            b"[1]", b'{"tensor": "0"}', b'{"meta": ["float32", [-1]]}', b'{"meta": ["float32", [1e99]]}',
            b'{"code": "x"}', b'{"dict": [[{"list": []}, 1]]}',
            b'{"other": 3}', b'{"a": 1, "b": 2}', b"9" * 5000, b"nonsense",
        )),
    ],
)  # fmt: skip
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(wire.Unreadable):
        wire.read(data)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import minisd.exercises.tasks.guide", 1),
        ("import torch\nfrom minisd.exercises.catalogue import find", 2),
        ("from minisd.exercises import EXERCISES", 1),
        ("from minisd.exercises import *", 1),
        ("def f():\n    import importlib\n    importlib.import_module('minisd.exercises.tasks.guide')", 3),
        ("__import__('minisd.exercises.checking')", 1),
        ("if __name__ == '__main__':\n    pass\nelse:\n    import minisd.exercises.tasks", 4),
    ],
)
def test_imports_of_answers_are_found(code: str, line: int) -> None:
    found = imports_of_answers(code.encode(), "guide.py")
    assert found is not None
    assert found.startswith(f"line {line}: it imports minisd.exercises.")


@pytest.mark.parametrize(
    "code",
    [
        "import os, math, numpy, minisd, minisd.models.layers\nfrom torch.nn import functional as F",
        "from minisd.exercises import check, hints\nimport minisd.exercises",
        "'''minisd.exercises.tasks.guide has the answer'''\nprint('minisd/exercises/tasks')",
        "if __name__ == '__main__':\n    from minisd.exercises.learner_folder import check_file",
        "import importlib\nimportlib.import_module('math')",
        "def broken(:",
        "x" + "(" * 5000,
        "\0",
    ],
)
def test_honest_sources_are_not_accused(code: str) -> None:
    assert imports_of_answers(code.encode(), "guide.py") is None


def changes(exercise: Exercise) -> bool:
    """Whether the inputs of two runs differ."""
    with drawn_for(1):
        one = repr([case.arguments for case in exercise.cases()])
    with drawn_for(2):
        other = repr([case.arguments for case in exercise.cases()])
    return one != other


@pytest.mark.parametrize("exercise", (EXERCISES | GRADED).values(), ids=list(EXERCISES | GRADED))
def test_inputs_are_drawn_for_each_run(exercise: Exercise) -> None:
    with torch.no_grad():
        has_network = any(isinstance(each, nn.Module) for case in exercise.cases() for each in case.arguments)
        assert has_network or changes(exercise)


@pytest.mark.parametrize("run", [1, 2**31 - 1])
@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=list(EXERCISES))
def test_other_inputs_are_as_good(exercise: Exercise, run: int) -> None:
    """Right solutions pass, each mistake is recognised, whatever the seed of the grader."""
    with drawn_for(run):
        for solution in exercise.variants:
            assert first_problem(exercise, solution) == []
        for mistake in exercise.mistakes:
            assert first_problem(exercise, mistake.wrong)[1:] == [f"likely: {mistake.says}."]


def test_the_librarys_own_answer_may_not_be_called() -> None:
    assert refused_names(EXERCISES["guide"]) == ("minisd.pipeline.guidance.combine",)
    assert refused_names(EXERCISES["res_block"]) == ("minisd.models.layers.ResBlock.forward",)
    assert refused_names(GRADED["churn_step"]) == ()


def test_who_handed_in_what(tmp_path: Path) -> None:
    for name in ("anna", "Ben", "carla/__MACOSX", "carla/deep/er"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("anna.py", "ben.py", "dora.zip", ".hidden.py", "anna/guide.py", "carla/deep/er/guide.py"):
        (tmp_path / name).write_text("def guide():\n    pass\n")
    (tmp_path / "carla/__MACOSX/guide.py").write_text("")
    found = {each.learner: each for each in submissions_in(tmp_path)}
    assert sorted(found) == ["Ben", "anna", "anna.py", "ben.py", "carla", "dora"]
    assert found["anna"].code_of("guide") == ("guide.py", b"def guide():\n    pass\n")
    assert found["anna.py"].code_of("guide") == ("anna.py", b"def guide():\n    pass\n")
    assert found["carla"].code_of("guide") is not None
    assert found["anna.py"].code_of("attention") is None
    assert found["anna"].code_of("attention") is None
    with pytest.raises(NotReadable, match=r"dora\.zip is neither a \.py file nor a folder"):
        found["dora"].code_of("guide")


def test_files_that_cannot_be_graded(tmp_path: Path) -> None:
    own = tmp_path / "anna"
    (own / "old").mkdir(parents=True)
    for place in (own, own / "old"):
        (place / "guide.py").write_text("")
    (own / "attention.py").write_text("#" * 2**21)
    anna = Submission("anna", own)
    with pytest.raises(NotReadable, match=r"several files guide\.py \(guide\.py and old/guide\.py\)"):
        anna.code_of("guide")
    with pytest.raises(NotReadable, match=r"attention\.py has more than 1,048,576 bytes"):
        anna.code_of("attention")
    if os.name == "nt":
        return  # links need rights there
    (own / "add_noise.py").symlink_to("/etc/passwd")
    with pytest.raises(NotReadable, match="no regular file"):
        anna.code_of("add_noise")


@pytest.mark.parametrize("task", GRADED.values(), ids=list(GRADED))
def test_graded_tasks_are_complete_but_for_their_answers(task: Exercise, tmp_path: Path) -> None:
    path = tmp_path / f"{task.name}.py"
    path.write_text(task.starter)
    for case in task.cases():
        with pytest.raises(NotWritten):
            call(load(str(path), task.name), case.arguments)
    assert task.reference.__name__ == task.name
    assert task.answer is None
    assert set(task.needs) <= set(EXERCISES)
    assert len(task.hints) == 3
    assert len({case.label for case in task.cases()}) == len(task.cases()) >= 3
    assert max(map(len, task.starter.splitlines())) <= 120
    title = f"[`{task.name}`](graded/{task.name}.py) {task.title}"
    row = " | ".join(map(str, (task.number, title, task.notebook, task.level, task.minutes)))
    assert f"| {row} |" in README.read_text(encoding="utf-8")
    assert task.number > max(each.number for each in EXERCISES.values())


def test_libraries_are_readable_wherever_they_are_installed() -> None:
    for module in (torch, json):
        assert os.path.realpath(module.__file__).startswith(READABLE)
    assert not str(Path(__file__).resolve()).startswith(READABLE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
def test_what_a_process_wrote_before_a_bad_end_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: dict[str, str | None] = {"end": "it ended its process with the exit code 3"}

    def watched(pid: int, reading: int, deadline: float) -> tuple[bytes, str | None]:
        os.waitpid(pid, 0)
        return b"data", ends["end"]

    monkeypatch.setattr(runner, "served", lambda request: b"")
    monkeypatch.setattr(runner, "_watched", watched)
    request = runner.Request("guide", "guide.py", b"", b"", (), 1.0, 64)
    with open(os.devnull, "rb") as first, open(os.devnull, "rb") as second:
        assert (
            runner.served_by_fork(request, first, second) == runner.ENDED + b"it ended its process with the exit code 3"
        )
        ends["end"] = None
        assert runner.served_by_fork(request, first, second) == runner.ANSWERED + b"data"
