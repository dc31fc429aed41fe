"""The training loop: it learns, continues killed runs bit for bit, averages over processes, survives bad batches."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from support.runs import Clock, Killed, adding, check_killed_runs, linear, minutes_of, steps_of
from torch import Tensor, nn

from minisd.errors import NumericalError, ResumeError
from minisd.training.trainer import AUTOCAST, Recipe, load_average, precision, train


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("minisd.training.trainer.time.monotonic", fake.monotonic)
    return fake


def test_it_learns_and_returns_the_average(clock: Clock, tmp_path: Path) -> None:
    model, lines = linear(), []
    recipe = Recipe(learning_rate=0.05, warmup_steps=10, ema_decay=0.9)
    average = train(model, adding(model), recipe, minutes_of(tmp_path / "run.pt", 10, report=lines.append))
    assert average is not model
    assert torch.allclose(average.weight, torch.ones(1, 3), atol=1e-2)
    assert "step" in lines[-1]


def test_a_run_continues_from_its_file_to_the_same_weights(clock: Clock, tmp_path: Path) -> None:
    whole = linear()
    recipe = Recipe(learning_rate=0.05)
    train(whole, adding(whole), recipe, minutes_of(tmp_path / "whole.pt", 3, save_every=7))

    parts = linear()
    inner, calls = adding(parts), 0

    def killed(generator: torch.Generator, progress: float) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise Killed
        return inner(generator, progress)

    run = minutes_of(tmp_path / "parts.pt", 3, save_every=7)
    with pytest.raises(Killed):
        train(parts, killed, recipe, run)
    resumed = linear()
    average = train(resumed, adding(resumed), recipe, run)
    stored = torch.load(tmp_path / "whole.pt", weights_only=True)
    again = torch.load(tmp_path / "parts.pt", weights_only=True)
    assert again["step"] == pytest.approx(stored["step"], abs=2)  # the clock is read a few times more or less
    assert torch.allclose(resumed.weight, whole.weight, atol=5e-3)
    assert torch.equal(average.weight, again["average"]["weight"])


def test_a_run_killed_at_random_ends_in_the_same_weights_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_to(path: Path) -> dict[str, Tensor]:
        model = linear()
        return train(model, adding(model), Recipe(learning_rate=0.05), steps_of(path, 12)).state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)


def test_accumulated_batches_make_one_step_with_the_mean_of_their_gradients(tmp_path: Path) -> None:
    """One step with three batches is that of a batch three times as large."""
    recipe = Recipe(learning_rate=0.05, warmup_steps=0, decay_fraction=0.0)
    three, one = linear(), linear()
    inner = adding(one)

    def mean_of_three(generator: torch.Generator, progress: float) -> Tensor:
        return torch.stack([inner(generator, progress) for _ in range(3)]).mean()

    train(three, adding(three), replace(recipe, accumulation=3), steps_of(tmp_path / "three.pt", 4))
    train(one, mean_of_three, recipe, steps_of(tmp_path / "one.pt", 4))
    assert torch.allclose(three.weight, one.weight, atol=1e-6)
    with pytest.raises(ResumeError, match="accumulation"):
        train(one, mean_of_three, replace(recipe, accumulation=2), steps_of(tmp_path / "one.pt", 5))


def test_without_an_average_the_model_itself_is_returned(tmp_path: Path) -> None:
    model = linear()
    recipe = Recipe(learning_rate=0.05, warmup_steps=0, decay_fraction=0.0, ema_decay=0.0)
    assert train(model, adding(model), recipe, steps_of(tmp_path / "run.pt", 5)) is model
    again = linear()
    train(again, adding(again), recipe, steps_of(tmp_path / "run.pt", 9))
    whole = linear()
    train(whole, adding(whole), recipe, steps_of(tmp_path / "whole.pt", 9))
    assert torch.equal(again.weight, whole.weight)
    assert (whole.weight - linear().weight).abs().max() > 0.1  # the rate is 0.05 from the first step to the last


def test_a_finished_run_is_not_trained_again(clock: Clock, tmp_path: Path) -> None:
    first = linear()
    train(first, adding(first), Recipe(), minutes_of(tmp_path / "run.pt", 1))
    second = linear()
    train(second, adding(second), Recipe(), minutes_of(tmp_path / "run.pt", 1))
    assert torch.equal(first.weight, second.weight)


def train_in_pair(process: int, folder: Path) -> None:
    """Train in a group of two processes, each on its own data."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=process, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisd.training.trainer.time.monotonic", Clock().monotonic)
        model = linear()
        data = (torch.eye(3)[:2], torch.eye(3)[2:])[process]
        lines: list[str] = []
        draws: list[float] = []

        def loss(generator: torch.Generator, progress: float) -> Tensor:
            draws.append(torch.randn((), generator=generator).item())
            return (model(data) ** 2).mean()

        train(model, loss, PAIR, minutes_of(folder / "run.pt", 0.5, report=lines.append))
    torch.save((model.state_dict(), len(lines), draws), folder / f"{process}.pt")
    dist.destroy_process_group()


PAIR = Recipe(learning_rate=0.05, warmup_steps=1)


def test_two_processes_train_like_one_on_the_data_of_both(clock: Clock, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_in_pair, (tmp_path,), nprocs=2)
    (first, lines, draws), (second, silence, others) = (torch.load(tmp_path / f"{process}.pt") for process in (0, 1))
    alone = linear()

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        return ((alone(torch.eye(3)[:2]) ** 2).mean() + (alone(torch.eye(3)[2:]) ** 2).mean()) / 2

    train(alone, loss, PAIR, minutes_of(tmp_path / "alone.pt", 0.5))
    for name, weight in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], weight, atol=1e-6)
    assert (lines > 0, silence) == (True, 0)  # one process reports and saves
    assert not set(draws) & set(others)  # each has its own batches


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_fp16": True}, torch.float16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_autocast_only_where_the_processor_has_it(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    x = torch.ones(2, 3)
    for name, wanted in AUTOCAST.items():
        with precision("cpu", name):
            assert linear()(x).dtype == (dtype if dtype == wanted else torch.float32)
    with precision("cpu", None):
        assert linear()(x).dtype == torch.float32


def test_float16_scales_the_loss_and_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first scale overflows some steps, which are left out; the scale that is found is a part of the run."""
    monkeypatch.setattr("minisd.training.trainer.computes_in", lambda dtype, device: True)
    recipe = Recipe(learning_rate=0.05, warmup_steps=0, decay_fraction=0.0, autocast="float16")
    seen: list[float] = []

    def train_to(path: Path) -> dict[str, Tensor]:
        model = linear()
        model.weight.register_hook(lambda gradient: seen.append(float(gradient.abs().max())))
        return train(model, adding(model), recipe, steps_of(path, 30)).state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)
    assert math.inf in seen[:3]
    assert 1000 < max(value for value in seen if value < math.inf) < math.inf
    stored = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert 1 < stored["scaler"]["scale"] < 65536


def test_seeds_and_steps_draw_different_batches(clock: Clock, tmp_path: Path) -> None:
    model, draws = linear(), []

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        draws.append(torch.randn((), generator=generator).item())
        return model.weight.sum()

    train(model, loss, Recipe(), minutes_of(tmp_path / "a.pt", 0.1))
    train(model, loss, Recipe(seed=1), minutes_of(tmp_path / "b.pt", 0.1))
    assert len(set(draws)) == len(draws) == 12


def test_bad_batches_are_skipped_and_too_many_stop_the_run(clock: Clock, tmp_path: Path) -> None:
    model = linear()
    inner, calls = adding(model), 0

    def sometimes(generator: torch.Generator, progress: float) -> Tensor:
        nonlocal calls
        calls += 1
        return inner(generator, progress) * (math.nan if calls % 3 == 0 else 1.0)

    train(model, sometimes, Recipe(), minutes_of(tmp_path / "run.pt", 1))
    assert torch.isfinite(model.weight).all()

    def always(generator: torch.Generator, progress: float) -> Tensor:
        return inner(generator, progress) * math.nan

    before = model.weight.clone()
    with pytest.raises(NumericalError, match="not finite"):
        train(model, always, Recipe(), minutes_of(tmp_path / "other.pt", 1))
    assert torch.equal(model.weight, before)


def test_a_run_of_another_model_is_refused(clock: Clock, tmp_path: Path) -> None:
    model = linear()
    train(model, adding(model), Recipe(), minutes_of(tmp_path / "run.pt", 0.2))
    other = nn.Linear(4, 1)
    with pytest.raises(ResumeError, match="another model"):
        train(other, adding(other), Recipe(), minutes_of(tmp_path / "run.pt", 1))
    with pytest.raises(ResumeError, match="another model"):
        load_average(other, tmp_path / "run.pt")
    stored = torch.load(tmp_path / "run.pt", weights_only=True)["average"]
    assert torch.equal(load_average(linear(), tmp_path / "run.pt").weight, stored["weight"])


def test_a_run_shows_its_average_whenever_it_is_saved(clock: Clock, tmp_path: Path) -> None:
    model, shown = linear(), []
    average = train(model, adding(model), Recipe(), minutes_of(tmp_path / "run.pt", 1, save_every=20), shown.append)
    assert shown == [average] * 3
