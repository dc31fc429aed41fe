"""The training loop: limited by time or steps, resumable, with an average of the weights.

The learning rate follows the share of the budget that is used up. A budget in minutes finishes well on any machine; a
budget in steps gives the same weights every time, bit for bit, also if the run was killed and continued. A run is one
file, replaced atomically (run_files.py); a killed run continues from it. Under `torchrun` every process draws its own
batches, and the gradients are averaged.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisd._internal.atomic_files import check_target
from minisd._internal.atomic_folders import make_folder
from minisd._internal.devices import computes_in
from minisd._internal.file_lock import only_writer
from minisd.errors import NumericalError, ResumeError
from minisd.training.run_files import Part, read_run, write_run

Network = TypeVar("Network", bound=nn.Module)
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TrainingLoss = Callable[[torch.Generator, float], Tensor]


@dataclass(frozen=True)
class Recipe:
    """Optimisation: AdamW, clipped gradients, exponential moving average (EMA) of the weights.

    The learning rate warms up, stays constant, and decays to zero over the last part of the budget. A run that is
    stopped before the decay can be continued with a larger budget at no loss. ema_decay 0: no average. accumulation:
    the gradients of so many batches make one step.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_fraction: float = 0.35  # of the budget
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.999
    autocast: str | None = None  # one of AUTOCAST, where the processor has instructions for it
    seed: int = 0
    patience: int = 20  # consecutive steps with NaN or infinity before the run stops
    accumulation: int = 1


@dataclass(frozen=True)
class TrainingBudget:
    """Minutes, or steps for repeatable runs."""

    minutes: float
    steps: int | None = None


@dataclass(frozen=True)
class TrainingRun:
    """A run: its file, which is continued if it exists, its whole budget, and a function for each line of progress.

    about: what the run is a run of, such as {"token": "<candy>"}; JSON values. Its file is continued as that alone.
    """

    path: Path
    budget: TrainingBudget
    report: Callable[[str], None] = lambda line: None
    save_every: float = 120.0  # seconds
    about: Mapping[str, object] = field(default_factory=dict)

    def of(self, **about: object) -> "TrainingRun":
        """The same run with more of what it is a run of; an underscore in a name becomes a blank."""
        return replace(self, about={**self.about, **{name.replace("_", " "): value for name, value in about.items()}})

    def check(self) -> None:
        """Raise, before any work, what `train` would raise for the file: OutputError, ResumeError."""
        if _process() == 0:
            make_folder(self.path.parent)
            with only_writer(self.path):
                read_run(self.path, {}, self.about, all_of_it=False)
                check_target(self.path, overwrite=True)

    def is_finished(self) -> bool:
        """Whether nothing of its budget is left."""
        state = read_run(self.path, {}, None) or {"step": 0, "elapsed": 0.0}
        steps = self.budget.steps
        return state["elapsed"] >= 60 * self.budget.minutes if steps is None else state["step"] >= steps


def train(
    model: Network, loss: TrainingLoss, recipe: Recipe, run: TrainingRun, show: Callable[[Network], None] | None = None
) -> Network:
    """Train `model` in place until the budget is used up; return the moving average of its weights.

    `loss(generator, progress)` draws a batch and returns a scalar; the generator depends only on seed, step and
    process, and progress is the used share of the budget, 0 to 1. `show` is called with the moving average whenever the
    run was saved, in one process.

    Ctrl-C saves the run once and raises KeyboardInterrupt, whose message says so. Raises NumericalError after
    `patience` consecutive steps with a non-finite loss (the file keeps the last good state), ResumeError if the file is
    damaged or of another run, and OutputError if it cannot be written, or another process is training it.
    """
    if _process() > 0:
        return _train(model, loss, recipe, run, None)
    make_folder(run.path.parent)
    with only_writer(run.path):
        return _train(model, loss, recipe, run, show)


def _train(
    model: Network, loss: TrainingLoss, recipe: Recipe, run: TrainingRun, show: Callable[[Network], None] | None
) -> Network:
    average = deepcopy(model).requires_grad_(False) if recipe.ema_decay else model
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    generator, process, device = torch.Generator(), _process(), next(model.parameters()).device.type
    scaler = torch.amp.GradScaler(device, enabled=recipe.autocast == "float16" and computes_in("float16", device))
    parts: dict[str, Part] = {"model": model, "average": average, "optimizer": optimizer}
    if scaler.is_enabled():
        parts["scaler"] = scaler
    about = {**run.about, "processes": dist.get_world_size() if dist.is_initialized() else 1}
    about |= {f"recipe.{name}": value for name, value in asdict(recipe).items()}
    if recipe.accumulation == 1:
        del about["recipe.accumulation"]  # runs of earlier versions have none
    if process > 0:
        dist.barrier()  # the first process may have to set a damaged file aside
    state = read_run(run.path, parts, about)
    if process == 0:
        check_target(run.path, overwrite=True)
        if dist.is_initialized():
            dist.barrier()
    step, elapsed, failures = (0, 0.0, 0) if state is None else (state["step"], state["elapsed"], 0)
    smooth, saved, reported, begin = float("nan"), elapsed, elapsed, time.monotonic() - elapsed
    reported_step = saved_step = step
    budget = 60 * run.budget.minutes if run.budget.steps is None else run.budget.steps

    def used() -> float:
        return elapsed if run.budget.steps is None else step

    def save() -> None:
        nonlocal saved, saved_step
        write_run(run.path, parts, step, elapsed, about)
        saved, saved_step = elapsed, step

    try:
        while used() < budget:
            progress = used() / budget
            factor = min(1, (step + 1) / max(recipe.warmup_steps, 1), (1 - progress) / max(recipe.decay_fraction, 1e-9))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * factor
            optimizer.zero_grad(set_to_none=True)
            generator.manual_seed(_combined_seed(recipe.seed, step, process))
            value = torch.zeros((), device=device)
            for _ in range(recipe.accumulation):
                with precision(device, recipe.autocast):
                    part = loss(generator, progress) / recipe.accumulation
                scaler.scale(part).backward()
                value += part.detach()
            value = _average_gradients(model, value)
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
            is_good = bool(torch.isfinite(value) and torch.isfinite(norm))  # a bad batch would spoil AdamW for good
            with _whole_steps():
                if is_good:
                    scaler.step(optimizer)
                    if average is not model:
                        _update_average(average, model, min(recipe.ema_decay, (step + 1) / (step + 10)))
                scaler.update()
                step += 1
            failures = 0 if is_good else failures + 1
            if is_good:
                smooth = value.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * value.item()
            elif failures > recipe.patience:
                raise NumericalError(
                    f"the loss was not finite for {failures} steps in a row, at step {step - 1}; begin a new run with "
                    f"a lower learning rate. {run.path} has the last good state."
                )
            elapsed = _shared_clock(time.monotonic() - begin)
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
                save()
                if show is not None:
                    show(average)
    except KeyboardInterrupt:
        if process == 0 and step > saved_step:
            save()
        kept = f"{run.path} has the run, and the same command continues it" if step else "nothing was trained"
        raise KeyboardInterrupt(f"interrupted at step {step}; {kept}") from None
    return average


@contextmanager
def _whole_steps() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done, so that a step is either saved with all that it changed, or not made."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[object] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        before(signal.SIGINT, None)


def _process() -> int:
    """The rank of this process under torchrun, else 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def precision(device: str, autocast: str | None) -> Iterator[None]:
    """Autocast to one of AUTOCAST; on the CPU with unfused attention, whose backward pass is faster there.

    A processor without instructions for it computes in float32, for imitated ones take several times as long.
    """
    if autocast is None or not computes_in(autocast, device):
        yield
        return
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with attention, torch.autocast(device, AUTOCAST[autocast]):
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


def load_average(model: Network, path: Path) -> Network:
    """Load the moving average of the run at `path` into a model. Raises ResumeError for a run of another model."""
    if read_run(path, {"average": model}, None) is None:
        raise ResumeError(f"{path} does not exist; train it first.")
    return model
