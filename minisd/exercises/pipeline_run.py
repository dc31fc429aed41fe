"""A short run of the pipeline with a learner's function in it, compared with the run of the library."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minisd.adapters import Lora
from minisd.exercises.exercise import Exercise, Solution
from minisd.exercises.learner_code import Complaint, file_of, guarded
from minisd.pipeline import StableDiffusion
from minisd.training.fine_tuning import is_small

PROMPT, STEPS, SEED = "a red circle", 5, 1
LOOKED = 2  # steps in which every module's output is kept: most wrong functions show there
KEPT = 64  # numbers of each module's output
SAME = 1e-3  # largest distance of latents, in parts of their size, of two right solutions


class Output(NamedTuple):
    """The output of one call of a module: its name, shape, and some of its numbers."""

    module: str
    shape: tuple[int, ...]
    values: Tensor


class Run(NamedTuple):
    """A run: the latents after each step, how often the solution was called.

    outputs: of all modules, in order, until the end of the first steps.
    """

    outputs: list[Output]
    latents: list[Tensor]
    calls: int


class Counted:
    """A learner's function within the pipeline: errors become Complaints, and calls are counted."""

    def __init__(self, solution: Solution) -> None:
        self.solution, self.calls = solution, 0

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.calls += 1
        with guarded(file_of(self.solution)):
            result = self.solution(*arguments, **more)
        if isinstance(result, Tensor) and not torch.isfinite(result).all():
            raise Complaint(f"call {self.calls}: the result is not finite.")
        return result


class Comparison(NamedTuple):
    """How the run with a learner's function differs from the library's.

    first: the first module whose output differs, as a sentence; None if all agree. drift: the distance of the latents
    after each step, in parts of their size. latents: the last ones of both runs. calls: of the learner's function.
    """

    first: str | None
    drift: list[float]
    latents: tuple[Tensor, Tensor]
    calls: int


class Runs:
    """The runs of one pipeline. The library's own is made once for all exercises that need the same one."""

    def __init__(self, sd: StableDiffusion) -> None:
        """sd: its networks must stay as they are."""
        self.sd = sd
        self._expected: dict[Callable[[Any], Mapping[str, Any]], Run] = {}

    def expected(self, exercise: Exercise) -> Run:
        """The library's run of an exercise."""
        if exercise.run not in self._expected:
            self._expected[exercise.run] = run(exercise, None, self.sd)
        return self._expected[exercise.run]

    def compare(self, exercise: Exercise, solution: Solution) -> Comparison:
        """Compare with the learner's run. Raises Complaint if the function fails within it."""
        expected, got = self.expected(exercise), run(exercise, solution, self.sd)
        drift = [float((a - b).norm() / a.norm()) for a, b in zip(expected.latents, got.latents, strict=False)]
        first = None
        if len(expected.latents) != len(got.latents):
            first = f"the run has {len(got.latents)} steps, expected {len(expected.latents)}"
        elif not max(drift) <= SAME:
            first = _first_difference(expected, got, exercise) or self._late_difference(exercise, solution)
        return Comparison(first, drift, (got.latents[-1], expected.latents[-1]), got.calls)

    def _late_difference(self, exercise: Exercise, solution: Solution) -> str:
        """The first difference after the steps in which outputs were kept: both runs again, keeping all of them."""
        expected, got = (run(exercise, each, self.sd, looked=None) for each in (None, solution))
        return _first_difference(expected, got, exercise) or "after the last module"


def run(exercise: Exercise, solution: Solution | None, sd: StableDiffusion, looked: int | None = LOOKED) -> Run:
    """The run that reaches the exercise's place; without a solution, that of the library.

    looked: the number of steps in which outputs are kept, which takes time; None for all.
    """
    options = dict(exercise.run(sd))
    lora = options.pop("lora", None)
    counted = None if solution is None else Counted(solution)
    assert exercise.install is not None
    silent = redirect_stdout(io.StringIO())  # a solution may print, but not hundreds of times
    installed = nullcontext() if counted is None else exercise.install(counted)
    merged, latents = None, []
    try:
        with silent, installed, _threads(sd), recorded(sd) as (outputs, end), torch.no_grad():
            merged = None if lora is None else Lora(lora)
            for step in _steps(sd, options):
                latents.append(step.latents)
                if len(latents) == looked:
                    end()
    except Complaint as error:
        raise Complaint(f"in the pipeline, {error}") from error
    except Exception as error:
        if solution is None:
            raise
        raise Complaint(f"the pipeline cannot go on with its results: {type(error).__name__}: {error}"[:300]) from error
    finally:
        if merged is not None:
            merged.remove()
    return Run(outputs, latents, 0 if counted is None else counted.calls)


@contextmanager
def _threads(sd: StableDiffusion) -> Iterator[None]:
    """One thread for a small model: more gain little, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if is_small(sd) else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _steps(sd: StableDiffusion, options: Mapping[str, Any]) -> Iterator[Any]:
    given = {"num_inference_steps": STEPS, "seed": SEED, **options}
    scheduler = given.pop("scheduler", None)
    before = sd.scheduler
    if scheduler is not None:
        sd.scheduler = scheduler
    try:
        yield from sd.denoise(PROMPT, **given)
    finally:
        sd.scheduler = before


@contextmanager
def recorded(sd: StableDiffusion) -> Iterator[tuple[list[Output], Callable[[], None]]]:
    """Keep some numbers of the output of every module that runs within the block; gives them, and what ends it."""
    outputs: list[Output] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                some = output.flatten()[:: max(1, output.numel() // KEPT)].clone()
                outputs.append(Output(name, tuple(output.shape), some))

        return hook

    parts = {"text encoder": sd.text_encoder, "unet": sd.unet, "vae": sd.vae}
    with ExitStack() as hooks:
        for part, network in parts.items():
            for name, module in network.named_modules():
                handle = module.register_forward_hook(keep(f"{part}.{name}" if name else part))
                hooks.callback(handle.remove)
        yield outputs, hooks.close


def _first_difference(expected: Run, got: Run, exercise: Exercise) -> str | None:
    """The first of the kept outputs that differs, as a sentence."""
    for k, (a, b) in enumerate(zip(expected.outputs, got.outputs, strict=False)):
        if a.module != b.module or a.shape != b.shape:
            return f"output {k + 1} is of {b.module} {b.shape}, expected {a.module} {a.shape}"
        largest = float((a.values.float() - b.values.float()).abs().max())
        if largest > 10 * exercise.atol + exercise.rtol * float(a.values.abs().max()):
            call = sum(each.module == "unet" for each in expected.outputs[:k]) + 1
            where = f", in call {call} of the UNet" if a.module.startswith("unet") else ""
            return f"{a.module} {a.shape}{where}: {largest:.1e}; the {k} outputs before it agree"
    return None
