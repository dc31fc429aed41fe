"""One loop trains everything: budgeted, resumable, averaged, guarded.

The learning rate follows the spent part of the budget. In minutes, a run ends well on any machine; in steps, it ends
in the same weights every time, killed and continued or not, bit for bit. A run is one file, replaced atomically; a
killed run continues from it, what was spent counted in. Under `torchrun` every process draws its own batches and the
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
Loss = Callable[[torch.Generator, float], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to optimise: AdamW, clipped gradients, exponential moving average.

    The learning rate warms up, stays, and falls to zero over the last part of the budget: until then, a run can be
    given more time and loses nothing.
    """

    minutes: float
    steps: int | None = None  # the budget, instead of minutes, of a run that must be repeatable
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    fall: float = 0.35  # of the budget, at its end
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    save_every: float = 120.0  # seconds
    bfloat16: bool = False  # autocast
    seed: int = 0
    patience: int = 20  # consecutive non-finite steps before giving up


def train(
    model: Network,
    loss: Loss,
    recipe: Recipe,
    path: Path,
    report: Callable[[str], None] = lambda line: None,
    show: Callable[[Network], None] | None = None,
) -> Network:
    """Train `model` in place until the budget is spent; return its moving average.

    `loss(generator, progress)` draws a batch with the generator, which depends on seed, step and process alone, and
    returns a scalar; progress is the spent part of the budget, 0 to 1. `path` is the run's file: written every
    `save_every` seconds and at the end, continued from when it exists. Each report is one line of progress; `show` is
    called with the average whenever the run was saved, by one process.

    Raises NumericalError after `patience` non-finite steps in a row (the file keeps the last good state), ResumeError
    when the file belongs to another model.
    """
    average = deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator()
    step, elapsed, bad = 0, 0.0, 0
    if path.exists():
        step, elapsed = _resume(path, model, average, optimizer)
    smooth, saved, reported, begin = float("nan"), elapsed, elapsed, time.monotonic() - elapsed
    reported_step = step
    process = dist.get_rank() if dist.is_initialized() else 0
    device = next(model.parameters()).device.type

    budget = 60 * recipe.minutes if recipe.steps is None else recipe.steps

    def spent() -> float:
        return elapsed if recipe.steps is None else step

    while spent() < budget:
        progress = spent() / budget
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1, (step + 1) / recipe.warmup_steps, (1 - progress) / recipe.fall)
        optimizer.zero_grad(set_to_none=True)
        generator.manual_seed(_seed_of(recipe.seed, step, process))
        with precision(device, recipe.bfloat16):
            value = loss(generator, progress)
        value.backward()
        value = _average_gradients(model, value.detach())
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        if torch.isfinite(value) and torch.isfinite(norm):  # one bad batch would poison AdamW for ever
            optimizer.step()
            _average(average, model, min(recipe.ema_decay, (step + 1) / (step + 10)))
            smooth = value.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * value.item()
            bad = 0
        else:
            bad += 1
            if bad > recipe.patience:
                raise NumericalError(
                    f"the loss was not finite for {bad} steps in a row, at step {step}; {path} has the last good state."
                )
        step, elapsed = step + 1, _first_says(time.monotonic() - begin)
        if process > 0:
            continue
        done = spent() >= budget
        if elapsed - reported > 15 or done:
            rate = (step - reported_step) / max(elapsed - reported, 1e-9)
            report(
                f"{spent() / budget:6.1%}  {elapsed / 60:.1f} min  step {step}  {rate:.2f} step/s  loss {smooth:.4f}"
            )
            reported, reported_step = elapsed, step
        if elapsed - saved > recipe.save_every or done:
            _save(path, model, average, optimizer, step, elapsed)
            saved = elapsed
            if show is not None:
                show(average)
    return average


@contextmanager
def precision(device: str, bfloat16: bool) -> Iterator[None]:
    """Autocast, if wanted; on the CPU with unfused attention: the fused kernel goes backward slowly in bfloat16."""
    if not bfloat16:
        yield
        return
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with attention, torch.autocast(device, torch.bfloat16):
        yield


def _seed_of(*numbers: int) -> int:
    """One seed, 32 bits as PyTorch's CPU generator wants it, from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _average_gradients(model: nn.Module, value: Tensor) -> Tensor:
    """Make every process's gradients their mean over all processes, in one message; returns the mean loss."""
    if not dist.is_initialized():
        return value
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    message = torch.cat([value.reshape(1), *(g.flatten() for g in gradients)])
    dist.all_reduce(message)
    value, *means = (message / dist.get_world_size()).split([1, *(g.numel() for g in gradients)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return value[0]


def _first_says(seconds: float) -> float:
    """The first process's clock, so that all stop at the same step."""
    if not dist.is_initialized():
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(clock, src=0)
    return clock.item()


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, new in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(new, 1 - decay)


def _save(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    elapsed: float,
) -> None:
    """Write the run to one file, which is either the old one or the new one, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "elapsed": elapsed,
    }
    write_atomically(path, lambda file: torch.save(state, file), overwrite=True)


def load_average(model: Network, path: Path) -> Network:
    """Put the moving average of the run at `path` into a model. Raises ResumeError for another model's run."""
    _read_run(path, average=model)
    return model


def _resume(path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Put a saved run into these objects; returns its steps and seconds."""
    state = _read_run(path, model=model, average=average, optimizer=optimizer)
    return state["step"], state["elapsed"]


def _read_run(path: Path, **parts: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    """Put the parts of a saved run into objects, by name; returns all of it."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, KeyError, ValueError) as error:
        raise ResumeError(f"{path} holds a run of another model ({error}); give another folder or remove it") from error
    return state
