"""`minisd exercises`: from the list to a solved exercise, and an image drawn with it."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minisd.cli import main
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.learner_folder import record
from minisd.exercises.solutions import solution_file

RIGHT = "def guide(both, scale):\n    u, c = both.chunk(2)\n    return u + scale * (c - u)\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_the_list_to_a_solved_exercise(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exercises"]) == 0
    printed = capsys.readouterr().out
    assert "04    attention " in printed
    assert "go on with `minisd exercises start add_noise`" in printed
    assert main(["exercises", "start", "guide"]) == 0
    assert "minisd exercises check guide" in capsys.readouterr().out
    assert main(["exercises", "check", "guide"]) == 1
    assert "guide: to do" in capsys.readouterr().out
    (here / "mine" / "guide.py").write_text(RIGHT.replace("(c - u)", "(u - c)"))
    assert main(["exercises", "check", "guide"]) == 1
    printed = capsys.readouterr().out
    assert "guide: failing" in printed
    assert "in the pipeline, first difference: " in printed
    assert Image.open(here / "mine" / "guide.png").width >= 3 * 192
    assert main(["exercises", "hint", "guide"]) == main(["exercises", "hint", "guide"]) == 0
    printed = capsys.readouterr().out
    assert "hint 1 of 3" in printed
    assert "hint 2 of 3" in printed
    (here / "mine" / "guide.py").write_text(RIGHT)
    assert main(["exercises", "check"]) == 0
    assert "guide: done" in capsys.readouterr().out
    assert json.loads((here / "mine" / "progress.json").read_text())["guide"] == {"state": "done", "hints": 2}
    assert main(["exercises", "list"]) == 0
    assert "done " in capsys.readouterr().out


@pytest.mark.parametrize("actions", [["list"], ["start guide", "hint guide"]])
def test_what_a_learner_only_reads_imports_no_pytorch(actions: list[str], here: Path) -> None:
    lines = [f"assert main(['exercises', *{action.split()}]) == 0" for action in actions]
    code = "\n".join(["import sys", "from minisd.cli import main", *lines, "sys.exit('torch' in sys.modules)"])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here)


def test_drawing_with_your_own_functions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "guide.py").write_text(RIGHT)
    (here / "mine" / "split_heads.py").write_text("def split_heads(tokens, heads):\n    return tokens\n")
    assert main(["exercises", "run", "a red circle"]) == 0
    printed = capsys.readouterr().out
    assert "yours: guide; the library's: the rest" in printed
    assert float(printed.split("image: ")[1].split(" of 1")[0]) < 1e-5
    assert (here / "mine.png").is_file()


def test_a_function_that_fails_while_it_draws(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine").mkdir()
    fails = RIGHT.replace(
        "    u, c", "    if both.shape[1] == 4:\n        raise KeyError('four')\n    print('x')\n    u, c"
    )
    (here / "mine" / "guide.py").write_text(fails)
    assert main(["exercises", "run", "a red circle"]) == 1
    assert "line 3: KeyError: 'four'" in capsys.readouterr().err


def test_mistakes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["start"], "start needs the name of an exercise"),
        (["run"], "run needs a prompt"),
        (["start", "atention"], "there is no exercise 'atention'; did you mean attention"),
        (["check"], "mine has no exercises yet"),
        (["check", "guide"], "does not exist; begin with `minisd exercises start guide`"),
        (["solution", "guide"], "add --yes when you have tried it yourself"),
    ):
        assert main(["exercises", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["exercises", "solution", "guide", "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "def guide(both: Tensor, scale: float)" in shown
    assert "# In the library: minisd/pipeline/guidance.py, line" in shown
    assert main(["exercises", "start", "guide"]) == 0
    assert main(["exercises", "start", "guide"]) == 2
    assert "exists, and is yours" in capsys.readouterr().err


def test_a_file_is_checked_again_when_it_is_saved(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then; an editor may remove it for a moment. Ctrl-C ends it."""
    path = here / "mine" / "guide.py"
    path.parent.mkdir()
    path.write_text(RIGHT.replace("(c - u)", "(u - c)"))
    steps = iter(("nothing", "remove", "save", "nothing"))

    def sleep(seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        if step == "remove":
            path.unlink()
        if step == "save":
            path.write_text(RIGHT)

    monkeypatch.setattr("minisd.cli.exercise_checks.time.sleep", sleep)
    with contextlib.suppress(KeyboardInterrupt):
        main(["exercises", "check", "guide", "--watch"])
    printed = capsys.readouterr().out
    assert printed.count("checked in") == 2
    assert printed.index("guide: failing") < printed.index("guide: done")


def test_what_was_called_and_what_is_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A right function of another task is not said to have drawn the image; the list ends with what to do next."""
    for name in ("guide", "lora_weight"):
        (here / "mine").mkdir(exist_ok=True)
        (here / "mine" / f"{name}.py").write_text(solution_file(EXERCISES[name]))
    assert main(["exercises", "check"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "2 of 2 done"
    assert f"{Path('mine', 'guide.png')}  what the pipeline draws with it\n" in printed
    assert main(["exercises", "run", "a red circle"]) == 0
    printed = capsys.readouterr().out
    assert "yours: guide; the library's: the rest\n" in printed
    assert "right, but not needed to draw this: lora_weight\n" in printed
    for name in EXERCISES:
        record(here / "mine", name, state="done")
    assert main(["exercises"]) == 0
    assert "all done; draw with your functions" in capsys.readouterr().out.splitlines()[-1]
