"""The training loop: limited by time or steps, resumable, with an average of the weights.

The learning rate follows the share of the budget that is used up. A budget in minutes finishes well on any machine; a
budget in steps gives the same weights every time, bit for bit, also if the run was killed and continued. A run is one
file, replaced atomically; a killed run continues from it. Under `torchrun` every process draws its own batches, and the
gradients are averaged.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisd._internal.atomic_files import write_atomically
from minisd.errors import NumericalError, ResumeError

Network = TypeVar("Network", bound=nn.Module)
TrainingLoss = Callable[[torch.Generator, float], Tensor]


@dataclass(frozen=True)
class Recipe:
    """Optimisation: AdamW, clipped gradients, exponential moving average (EMA) of the weights.

    The learning rate warms up, stays constant, and decays to zero over the last part of the budget. A run that is
    stopped before the decay can be continued with a larger budget at no loss.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_fraction: float = 0.35  # of the budget
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.999
    bfloat16: bool = False  # autocast
    seed: int = 0
    patience: int = 20  # consecutive steps with NaN or infinity before the run stops


@dataclass(frozen=True)
class TrainingBudget:
    """Minutes, or steps for repeatable runs."""

    minutes: float
    steps: int | None = None


@dataclass(frozen=True)
class TrainingRun:
    """A run: its file, which is continued if it exists, its whole budget, and a function for each line of progress."""

    path: Path
    budget: TrainingBudget
    report: Callable[[str], None] = lambda line: None
    save_every: float = 120.0  # seconds


def train(
    model: Network, loss: TrainingLoss, recipe: Recipe, run: TrainingRun, show: Callable[[Network], None] | None = None
) -> Network:
    """Train `model` in place until the budget is used up; return the moving average of its weights.

    `loss(generator, progress)` draws a batch and returns a scalar; the generator depends only on seed, step and
    process, and progress is the used share of the budget, 0 to 1. `show` is called with the moving average whenever the
    run was saved, in one process.

    Raises NumericalError after `patience` consecutive steps with a non-finite loss (the file keeps the last good
    state), and ResumeError if the file belongs to another model.
    """
    average = deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator()
    step, elapsed, failures = 0, 0.0, 0
    if run.path.exists():
        state = _read_run(run.path, model=model, average=average, optimizer=optimizer)
        step, elapsed = state["step"], state["elapsed"]
    smooth, saved, reported, begin = float("nan"), elapsed, elapsed, time.monotonic() - elapsed
    reported_step = step
    process = dist.get_rank() if dist.is_initialized() else 0
    device = next(model.parameters()).device.type

    budget = 60 * run.budget.minutes if run.budget.steps is None else run.budget.steps

    def used() -> float:
        return elapsed if run.budget.steps is None else step

    while used() < budget:
        progress = used() / budget
        factor = min(1, (step + 1) / recipe.warmup_steps, (1 - progress) / recipe.decay_fraction)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        optimizer.zero_grad(set_to_none=True)
        generator.manual_seed(_combined_seed(recipe.seed, step, process))
        with precision(device, recipe.bfloat16):
            value = loss(generator, progress)
        value.backward()
        value = _average_gradients(model, value.detach())
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        if torch.isfinite(value) and torch.isfinite(norm):  # one bad batch would spoil AdamW's moments for good
            optimizer.step()
            _update_average(average, model, min(recipe.ema_decay, (step + 1) / (step + 10)))
            smooth = value.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * value.item()
            failures = 0
        else:
            failures += 1
            if failures > recipe.patience:
                raise NumericalError(
                    f"the loss was not finite for {failures} steps in a row, at step {step}; lower the learning rate. "
                    f"{run.path} has the last good state."
                )
        step, elapsed = step + 1, _shared_clock(time.monotonic() - begin)
        if process > 0:
            continue
        done = used() >= budget
        if elapsed - reported > 15 or done:
            rate = (step - reported_step) / max(elapsed - reported, 1e-9)
            run.report(
                f"{used() / budget:6.1%}  {elapsed / 60:.1f} min  step {step}  {rate:.2f} step/s  loss {smooth:.4f}"
            )
            reported, reported_step = elapsed, step
        if elapsed - saved > run.save_every or done:
            _save(run.path, model, average, optimizer, step, elapsed)
            saved = elapsed
            if show is not None:
                show(average)
    return average


@contextmanager
def precision(device: str, bfloat16: bool) -> Iterator[None]:
    """Autocast to bfloat16 if requested; on the CPU with unfused attention, whose backward pass is faster there."""
    if not bfloat16:
        yield
        return
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with attention, torch.autocast(device, torch.bfloat16):
        yield


def _combined_seed(*numbers: int) -> int:
    """One seed of 32 bits, the limit of PyTorch's CPU generator, from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _average_gradients(model: nn.Module, value: Tensor) -> Tensor:
    """Replace every process's gradients by the mean over all processes, in one message; returns the mean loss."""
    if not dist.is_initialized():
        return value
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    message = torch.cat([value.reshape(1), *(g.flatten() for g in gradients)])
    dist.all_reduce(message)
    value, *means = (message / dist.get_world_size()).split([1, *(g.numel() for g in gradients)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return value[0]


def _shared_clock(seconds: float) -> float:
    """The first process's time, so that all processes stop at the same step."""
    if not dist.is_initialized():
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(clock, src=0)
    return clock.item()


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, new in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(new, 1 - decay)


def _save(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, elapsed: float
) -> None:
    """Write the run to one file, which is always either the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {"model": model, "average": average, "optimizer": optimizer}
    state = {name: part.state_dict() for name, part in parts.items()} | {"step": step, "elapsed": elapsed}
    write_atomically(path, lambda file: torch.save(state, file), overwrite=True)


def load_average(model: Network, path: Path) -> Network:
    """Load the moving average of the run at `path` into a model. Raises ResumeError for a run of another model."""
    _read_run(path, average=model)
    return model


def _read_run(path: Path, **parts: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    """Load the parts of a saved run into objects, by name; returns the whole state."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, KeyError, ValueError) as error:
        raise ResumeError(f"{path} is a run of another model ({error}); remove it, or name another folder.") from error
    return state
