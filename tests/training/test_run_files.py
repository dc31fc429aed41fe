"""The file of a run: damaged ones, runs of something else, two trainers, a full disk, Ctrl-C."""

import io
import math
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import adding, linear, steps_of
from torch import Tensor, nn

from minisd.errors import OutputError, ResumeError
from minisd.training.run_files import fingerprint
from minisd.training.trainer import Recipe, TrainingRun, load_average, train

ROOT = Path(__file__).resolve().parents[2]


def go(run: TrainingRun, model: nn.Linear | None = None) -> nn.Module:
    """Train a small model, or continue its run."""
    model = linear() if model is None else model
    return train(model, adding(model), Recipe(learning_rate=0.05), run)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run of 5 steps, with the state after 3 of them beside it."""
    go(steps_of(tmp_path / "run.pt", 3))
    go(steps_of(tmp_path / "run.pt", 5))
    return tmp_path / "run.pt"


def previous(path: Path) -> Path:
    return path.with_name("run.pt.previous")


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


def state_of(path: Path) -> str:
    """Everything in a run but its time."""
    return repr(torch.load(path, weights_only=True) | {"elapsed": 0})


class Evil:
    """A pickle that runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def damaged_files(good: bytes) -> Iterator[tuple[str, bytes]]:
    state = torch.load(io.BytesIO(good), weights_only=True)
    weight = state["model"]["weight"].numpy().tobytes()
    yield from {
        "empty": b"",
        "html": b"<html></html>",
        "random": random.Random(0).randbytes(500),
        "zeros": bytes(5000),
        "cut": good[:-1],
        "cut in half": good[: len(good) // 2],
        "a bit flipped": good.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]),
        "malicious": saved({"model": Evil()}),
        "malicious, old format": pickle.dumps(Evil()),
        "a list": saved([1]),
        "a model": saved(linear().state_dict()),
    }.items()
    weights = {"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}
    for key, value in [
        ("step", None),
        ("step", -5),
        ("step", True),
        ("step", 2.0),
        ("elapsed", math.nan),
        ("elapsed", math.inf),
        ("elapsed", "1"),
        ("elapsed", -1.0),
        ("optimizer", None),
        ("optimizer", {}),
        ("optimizer", {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}),
        ("optimizer", {"state": {7: {}}, "param_groups": []}),
        ("model", []),
        ("average", {"weight": 1}),
        ("average", {"weight": torch.zeros(1, 3).to_sparse(), "bias": torch.zeros(1)}),
        ("average", weights | {"bias": torch.zeros(1, dtype=torch.complex64)}),
        ("about", 5),
        ("about", "{"),
        ("about", "[]"),
    ]:
        yield f"{key} {value!r}", saved({**state, key: value})
    for key in ("model", "average", "optimizer", "step", "elapsed"):
        yield f"no {key}", saved({name: value for name, value in state.items() if name != key})


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "weights_only" not in text
    assert text.endswith(".")
    return text


def test_a_damaged_file_falls_back_on_the_state_before(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    good, before, whole = path.read_bytes(), previous(path).read_bytes(), state_of(path)
    for name, raw in damaged_files(good):
        path.write_bytes(raw)
        previous(path).write_bytes(before)
        with pytest.warns(UserWarning, match=r"run\.pt is damaged .* of step 3, takes its place"):
            go(steps_of(path, 5))
        assert state_of(path) == whole, name  # trained again, to the same bits
        assert path.with_name("run.pt.damaged").read_bytes() == raw, name
    assert not (tmp_path / "executed").exists()


def test_a_damaged_file_alone_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    good = path.read_bytes()
    for both in (False, True):
        for name, raw in damaged_files(good):
            path.write_bytes(raw)
            previous(path).unlink(missing_ok=True)
            if both:
                previous(path).write_bytes(raw)
            with pytest.raises(ResumeError) as caught:
                go(steps_of(path, 9))
            words = "so is the state before it" if both else "no state before it"
            assert words in one_sentence(caught), name
            assert path.read_bytes() == raw
    assert not (tmp_path / "executed").exists()


def test_who_removes_a_run_begins_a_new_one(path: Path) -> None:
    path.unlink()
    go(steps_of(path, 1))
    assert step_of(path) == 1
    assert not previous(path).exists()


def test_a_file_system_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def refuse(*names: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    go(steps_of(path, 7))
    assert (step_of(path), previous(path).read_bytes()) == (7, before)


def test_a_folder_or_a_pipe_in_place_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt")
    for name in ("folder.pt", *(["pipe.pt"] if hasattr(os, "mkfifo") else [])):
        with pytest.raises(ResumeError, match="not a regular file") as caught:
            go(steps_of(tmp_path / name, 1))
        one_sentence(caught)
    (tmp_path / "file").touch()
    for name in ("file/run.pt", "x" * 256 + "/run.pt", "x" * 300, "a\0b/run.pt"):
        with pytest.raises(OutputError) as error:
            go(steps_of(tmp_path / name, 1))
        one_sentence(error)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, repeated, removed or inserted."""
    data = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 3, 20])):
        at, length = chance.randrange(len(data) or 1), chance.choice([1, 4, 64, 500])
        kind = chance.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([byte ^ 1 << chance.randrange(8) for byte in data[at : at + 1]])
        elif kind == 1:
            data[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + 4] = b"\xff\xff\xff\xff"
        else:
            del data[max(at, 1) :]
    return bytes(data)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files(path: Path, count: int) -> None:
    """Each is refused in a sentence, or is the state that was saved."""
    previous(path).unlink()
    good, average = path.read_bytes(), load_average(linear(), path)
    refused, messages, chance = 0, set(), random.Random(count)
    for _ in range(count):
        path.write_bytes(mutated(good, chance))
        try:
            found = load_average(linear(), path)
        except ResumeError as error:
            messages.add(str(error))
            refused += 1
        else:
            assert torch.equal(found.weight, average.weight)
    assert refused > 0.8 * count
    assert not any("\n" in message for message in messages)


# What a run is a run of.


def test_a_run_of_something_else_is_refused_with_the_differences(tmp_path: Path) -> None:
    run = steps_of(tmp_path / "run.pt", 3).of(token="<x>", like="star", start_model="5f")
    go(run)
    before = run.path.read_bytes()
    other = steps_of(run.path, 9).of(token="<y>", like="star", start_model="6a")
    for use in (lambda: go(other), other.check):
        with pytest.raises(ResumeError) as caught:
            use()
        text = one_sentence(caught)
        assert "token is '<y>', was '<x>'; start model is '6a', was '5f'" in text
        assert "like" not in text
    model = linear()
    with pytest.raises(ResumeError, match=r"recipe\.learning_rate is 0\.1, was 0\.05; recipe\.seed is 1, was 0"):
        train(model, adding(model), Recipe(learning_rate=0.1, seed=1), run)
    with pytest.raises(ResumeError, match="like is None, was 'star'"):
        go(steps_of(run.path, 9).of(token="<x>", start_model="5f"))
    assert run.path.read_bytes() == before
    go(steps_of(run.path, 9).of(token="<x>", like="star", start_model="5f"))  # budgets may change
    assert step_of(run.path) == 9


def test_a_run_of_an_older_version_is_continued_with_a_notice(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["about"]
    torch.save(state, path)
    with pytest.warns(UserWarning, match="does not say what it is a run of"):
        go(steps_of(path, 6).of(token="<x>"))
    with pytest.raises(ResumeError, match="token is '<y>', was '<x>'"):
        go(steps_of(path, 7).of(token="<y>"))


@pytest.mark.parametrize("scale", [None, {"scale": 0.0, "_growth_tracker": 0}, {"scale": 8.0, "_growth_tracker": "x"}])
def test_a_wrong_scale_of_the_loss(scale: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minisd.training.trainer.computes_in", lambda dtype, device: True)
    model, recipe, path = linear(), Recipe(autocast="float16"), tmp_path / "run.pt"
    train(model, adding(model), recipe, steps_of(path, 2))
    state = torch.load(path, weights_only=True)
    assert state["scaler"]["scale"] > 0
    path.write_bytes(saved(state | {"scaler": scale}))
    with pytest.raises(ResumeError, match=r"damaged \(it has no scale of the loss\)"):
        train(model, adding(model), recipe, steps_of(path, 3))


def test_fingerprints() -> None:
    model, other = linear(), linear()
    assert fingerprint(model, "a") == fingerprint(other, "a") != fingerprint(model, "b")
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    other.weight.data[0, 1] += 1e-6
    assert fingerprint(model) != fingerprint(other)
    pixels = torch.zeros(2, 3, 64, 64)
    changed = pixels.clone()
    changed[1, 2, 3, 4] = 1
    assert fingerprint(pixels) != fingerprint(changed)
    assert fingerprint(pixels) != fingerprint(pixels.reshape(2, 3, 4096))


# One trainer at a time; a full disk; Ctrl-C.


def test_a_second_trainer_is_refused_at_once(tmp_path: Path) -> None:
    model, run = linear(), steps_of(tmp_path / "run.pt", 2)
    inner = adding(model)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        for use in (lambda: go(run), run.check):
            with pytest.raises(OutputError, match="another process is writing") as caught:
                use()
            one_sentence(caught)
        return inner(generator, progress)

    train(model, loss, Recipe(), run)
    train(model, inner, Recipe(), run)  # the lock has gone
    assert os.listdir(tmp_path) == ["run.pt"]


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from support.runs import adding, linear, steps_of
from minisd.training.trainer import Recipe, train
model, path = linear(), Path(sys.argv[1])
inner = adding(model)
def loss(generator, progress):
    {extra}
    return inner(generator, progress)
"""


def program(extra: str, rest: str) -> str:
    return PROGRAM.format(tests=str(ROOT / "tests"), extra=extra) + rest


def start(code: str, path: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit")
def test_a_full_disk_leaves_the_old_run(path: Path) -> None:
    import resource

    before = path.read_bytes(), previous(path).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OutputError) as error:
            go(steps_of(path, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == f"{path} could not be written (File too large); it is unchanged."
    assert (path.read_bytes(), previous(path).read_bytes()) == before
    assert {file.name for file in path.parent.iterdir()} == {"run.pt", "run.pt.previous"}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT from another process")
def test_an_interruption_saves_whole_steps(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    rest = """
try:
    train(model, loss, Recipe(learning_rate=0.05), steps_of(path, 10**9))
except KeyboardInterrupt as stop:
    print(stop)
"""
    process = start(program("if progress > 5e-8: print('ready', flush=True)", rest), path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert not path.exists()
    process.send_signal(signal.SIGINT)
    last = process.communicate()[0].splitlines()[-1]
    step = step_of(path)
    assert step >= 50
    assert last == f"interrupted at step {step}; {path} has the run, and the same command continues it"
    state = torch.load(path, weights_only=True)
    assert state["optimizer"]["state"][0]["step"] == step  # no step is saved in part


def test_an_interruption_in_the_middle_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loss, the step is not made; while weights change, the step is finished first."""
    from minisd.training import trainer

    update, pressed = trainer._update_average, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal pressed
        pressed += 1
        if pressed == 3:
            signal.raise_signal(signal.SIGINT)
        update(*arguments)

    monkeypatch.setattr(trainer, "_update_average", interrupted)
    run = steps_of(tmp_path / "parts.pt", 8)
    with pytest.raises(KeyboardInterrupt, match="interrupted at step 3"):
        go(run)
    assert step_of(run.path) == 3
    model = linear()
    inner = adding(model)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        if progress > 0.5:
            raise KeyboardInterrupt
        return inner(generator, progress)

    with pytest.raises(KeyboardInterrupt, match="interrupted at step 5"):
        train(model, loss, Recipe(learning_rate=0.05), run)
    parts, whole = go(run), go(steps_of(tmp_path / "whole.pt", 8))
    assert all(torch.equal(a, b) for a, b in zip(parts.parameters(), whole.parameters(), strict=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_before_the_first_step_writes_nothing(tmp_path: Path) -> None:
    def loss(generator: torch.Generator, progress: float) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="interrupted at step 0; nothing was trained"):
        train(linear(), loss, Recipe(), steps_of(tmp_path / "run.pt", 8))
    assert os.listdir(tmp_path) == []
