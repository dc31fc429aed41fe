"""Every exercise: right solutions pass, each mistake fails and is recognised, the pipeline reaches the function."""

import inspect
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minisd
from minisd.errors import InputError
from minisd.exercises.catalogue import EXERCISES, find
from minisd.exercises.checking import check_solution, first_problem, recognise
from minisd.exercises.exercise import Exercise, Solution
from minisd.exercises.learner_code import Complaint, NotWritten, call, load
from minisd.exercises.pipeline_run import SAME, STEPS, Runs
from minisd.exercises.sheets import SHEETS
from minisd.exercises.solutions import solution_file

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
ALL = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=list(EXERCISES))
IN_PIPELINE = [each for each in EXERCISES.values() if each.install is not None]
MISTAKES = [(each, mistake) for each in EXERCISES.values() for mistake in each.mistakes]


@ALL
def test_the_reference_and_other_right_solutions_pass(exercise: Exercise) -> None:
    assert exercise.variants
    for solution in exercise.variants:
        assert first_problem(exercise, solution) == []
    free = Exercise(**{**vars(exercise), "forbidden": ()})  # the reference may use the library's function
    assert first_problem(free, exercise.reference) == []


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=[f"{e.name}-{m.wrong.__name__}" for e, m in MISTAKES])
def test_each_mistake_fails_and_is_recognised_as_itself(exercise: Exercise, mistake: object) -> None:
    lines = first_problem(exercise, mistake.wrong)  # type: ignore[attr-defined]
    assert lines[1:] == [f"likely: {mistake.says}."]  # type: ignore[attr-defined]


@ALL
def test_mistakes_are_far_from_right_solutions(exercise: Exercise) -> None:
    """At least ten times as far as any right solution, in some case."""

    def distance(solution: object) -> float:
        found = []
        for case in exercise.cases():
            try:
                got, expected = call(solution, case.arguments), exercise.reference(*case.arguments)  # type: ignore[arg-type]
            except Complaint:
                return float("inf")
            if isinstance(got, Tensor) and isinstance(expected, Tensor):
                same = got.shape == expected.shape and bool(got.isfinite().all())
                found.append(float((got - expected).abs().max()) if same else float("inf"))
            else:
                found.append(float("inf") if got != expected else 0.0)
        return max(found)

    right = max(distance(solution) for solution in exercise.variants)
    for mistake in exercise.mistakes:
        assert distance(mistake.wrong) >= 10 * max(right, exercise.atol), mistake.says


@ALL
def test_the_starter_file(exercise: Exercise, tmp_path: Path) -> None:
    path = tmp_path / f"{exercise.name}.py"
    path.write_text(exercise.starter)
    solution = load(str(path), exercise.name)
    assert inspect.getdoc(solution)
    assert max(map(len, exercise.starter.splitlines())) <= 120
    with pytest.raises(NotWritten, match="nothing is written yet"):
        first_problem(exercise, solution)
    assert check_solution(exercise, solution).state == "to do"


@pytest.mark.parametrize("exercise", IN_PIPELINE, ids=[each.name for each in IN_PIPELINE])
def test_the_pipeline_uses_it(exercise: Exercise, runs: Runs) -> None:
    """A right solution is called and changes nothing; a wrong one changes the latents."""
    right = runs.compare(exercise, exercise.variants[0])
    assert right.calls > 0, "the library does not call this any more"
    assert right.first is None
    assert max(right.drift) < SAME
    got, expected = right.latents
    assert torch.allclose(got, expected, atol=1e-2)
    assert any(changes_the_latents(exercise, mistake.wrong, runs) for mistake in exercise.mistakes)


def changes_the_latents(exercise: Exercise, wrong: Solution, runs: Runs) -> bool:
    """Whether the run fails, has another number of steps, or ends elsewhere."""
    try:
        compared = runs.compare(exercise, wrong)
    except Complaint:
        return True
    return "steps" in str(compared.first) or max(compared.drift) > 10 * SAME


def test_the_catalogue_is_complete() -> None:
    files = {path.stem for path in (Path(inspect.getfile(find)).parent / "tasks").glob("*.py")} - {"__init__"}
    assert files == set(EXERCISES)
    numbers = [each.number for each in EXERCISES.values()]
    assert numbers == list(range(1, len(files) + 1))
    for each in EXERCISES.values():
        assert set(each.needs) <= set(EXERCISES)
        assert 1 <= each.level <= 5
        assert len(each.hints) == 3
        assert each.reference.__name__ == each.name


@ALL
def test_what_is_read_without_pytorch_is_what_the_exercise_has(exercise: Exercise) -> None:
    sheet = SHEETS[exercise.name]
    for field in sheet.__dataclass_fields__:
        assert getattr(sheet, field) == getattr(exercise, field), field
    assert sheet.starter == exercise.starter


def test_of_two_mistakes_the_first_one_is_recognised() -> None:
    def unscaled_and_not_causal(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v

    shown = first_problem(EXERCISES["attention"], unscaled_and_not_causal)
    assert shown[0].startswith("five queries, eleven keys: ")
    assert shown[1:] == ["likely: the scores are not divided by sqrt(d)."]


def test_a_difference_after_the_first_steps_is_found(runs: Runs) -> None:
    """Outputs are kept in the first steps only; where they agree, both runs are made again."""
    exercise, calls = EXERCISES["guide"], itertools.count()

    def late(both: Tensor, scale: float) -> Tensor:
        uncond, cond = both.chunk(2)
        return uncond + (scale if next(calls) % STEPS < STEPS - 2 else 0) * (cond - uncond)

    compared = runs.compare(exercise, late)
    assert compared.drift[STEPS - 3] < SAME < compared.drift[STEPS - 2]
    assert str(compared.first).startswith(f"unet.conv_in (1, 32, 16, 16), in call {STEPS} of the UNet: ")


@ALL
def test_hints_do_not_contain_the_answer(exercise: Exercise) -> None:
    body = inspect.getsource(exercise.reference).split('"""')[-1]
    lines = [line.strip().removeprefix("return ") for line in body.splitlines()[1:] if len(line.strip()) > 25]
    for hint in exercise.hints:
        assert not any(line in hint for line in lines)
        assert not re.search(r"\breturn\b", hint)


def test_unknown_exercises_are_named() -> None:
    assert find("4") is find("04") is EXERCISES["attention"]
    with pytest.raises(InputError, match="no exercise 'atention'; did you mean attention"):
        find("atention")
    with pytest.raises(InputError, match="minisd exercises list"):
        find("zzzz")


def test_a_mistake_that_is_not_known_is_not_named() -> None:
    exercise = EXERCISES["guide"]
    assert recognise(exercise, exercise.cases(), lambda case: 3 * case.arguments[0][:2]) is None


def test_the_readme_lists_them_all() -> None:
    text = (Path(inspect.getfile(find)).parent / "README.md").read_text()
    for each in EXERCISES.values():
        facts = (
            each.number,
            f"[`{each.name}`](tasks/{each.name}.py) {each.title}",
            each.notebook,
            each.level,
            each.minutes,
        )
        row = f"| {' | '.join(map(str, facts))} |"
        assert row in text, row


@pytest.mark.parametrize("name", EXERCISES)
def test_the_shown_solution_is_a_file_that_passes(name: str, tmp_path: Path) -> None:
    exercise = EXERCISES[name]
    text = solution_file(exercise)
    path = tmp_path / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    assert first_problem(exercise, load(str(path), name)) == []
    assert "import minisd.exercises" not in text
    assert "from minisd.exercises" not in text
    found = re.search(r"# In the library: (\S+?\.py)(?:, line (\d+), (\S+))?$", text)
    assert found is not None
    source = (Path(minisd.__file__).parents[1] / found[1]).read_text(encoding="utf-8").splitlines()
    if found[2]:
        last = found[3].rpartition(".")[2]
        assert any(re.search(rf"(?:def|class) {last}\b", line) for line in source[int(found[2]) - 1 :][:4])


def test_the_run_takes_one_thread_and_gives_the_others_back(runs: Runs) -> None:
    """On a busy machine, threads that wait for each other made a check of a second take thirty."""
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:

        def combine(both: Tensor, scale: float) -> Tensor:
            seen.add(torch.get_num_threads())
            uncond, cond = both.chunk(2)
            return uncond + scale * (cond - uncond)

        assert runs.compare(EXERCISES["guide"], combine).first is None
        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
