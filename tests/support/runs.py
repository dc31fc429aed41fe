"""Short training runs: a fake clock, a killed process, a model that learns to add."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minisd.training.trainer import TrainingBudget, TrainingRun, _update_average

TrainTo = Callable[[Path], dict[str, Tensor]]


class Clock:
    """Advances by `tick` seconds at each call, which makes time-limited training repeatable."""

    def __init__(self, tick: float = 1.0) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


class Killed(Exception):
    """Stands for a process that ends in the middle of a step."""


def steps_of(path: Path, steps: int, report: Callable[[str], None] = lambda line: None) -> TrainingRun:
    """A run of some steps."""
    return TrainingRun(path, TrainingBudget(0, steps), report)


def minutes_of(path: Path, minutes: float, **options: object) -> TrainingRun:
    """A run of some minutes."""
    return TrainingRun(path, TrainingBudget(minutes), **options)  # type: ignore[arg-type]


def linear() -> nn.Linear:
    """A small model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 1)


def adding(model: nn.Linear) -> Callable[[torch.Generator, float], Tensor]:
    """The loss of a model that learns to add its three inputs."""

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        x = torch.randn(16, 3, generator=generator)
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()

    return loss


def check_killed_runs(train_to: TrainTo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that is killed at random steps and continued ends in the same weights, bit for bit."""
    monkeypatch.setattr("minisd.training.trainer.time.monotonic", Clock(tick=50).monotonic)  # saves every third step
    whole = train_to(folder / "whole.pt")
    chance, kills, left = random.Random(0), 0, 0

    def deadly(*arguments: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        _update_average(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("minisd.training.trainer._update_average", deadly)
    while True:
        left = chance.randint(2, 8)
        try:
            parts = train_to(folder / "parts.pt")
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())
    stored, again = (torch.load(folder / f"{name}.pt", weights_only=True)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(again[name], weight) for name, weight in stored.items())
