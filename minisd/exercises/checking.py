"""Checking a solution: it stops at the first thing that is worth reading.

First the cases: is the result a tensor of the right shape, are its numbers those of the reference? If not, which known
mistake gives exactly these numbers? Then the function is put into the pipeline of a trained model, whose modules are
compared one by one, and an image is drawn with it.
"""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageChops
from torch import Tensor

from minisd import images
from minisd.exercises.comparing import agree, difference, kind, listed, shown
from minisd.exercises.exercise import Case, Exercise, Solution
from minisd.exercises.learner_code import Complaint, Failed, NotWritten, call
from minisd.exercises.pipeline_run import Comparison, Runs
from minisd.pipeline import StableDiffusion

LEAST_WIDTH = 192  # pixels of a picture in a report
Load = Callable[[], Runs]  # gives the pipeline, the first time slowly
Result = Callable[[Case], Any]  # of a solution; raises Complaint where it fails


@dataclass(repr=False)
class Report:
    """What a check found. state: "done", "failing" or "to do".

    picture: drawn with the learner's function; where it is wrong, beside the expected one.
    """

    exercise: Exercise
    state: str
    lines: list[str] = field(default_factory=list)
    picture: Image.Image | None = None

    def __str__(self) -> str:
        return "\n".join([f"{self.exercise.name}: {self.state}", *(f"  {line}" for line in self.lines)])

    def __repr__(self) -> str:
        return f"<{self.exercise.name}: {self.state}>"

    def _repr_png_(self) -> bytes | None:
        return None if self.picture is None else self.picture._repr_png_()


def check_solution(exercise: Exercise, solution: Solution, load: Load | None = None) -> Report:
    """Check a learner's function. load: gives the pipeline that it is put into; None leaves this part out."""
    try:
        problem = first_problem(exercise, solution)
    except NotWritten as error:
        return Report(exercise, "to do", [str(error)])
    except Complaint as error:
        return Report(exercise, "failing", [str(error)])
    report = Report(exercise, "failing", problem) if problem else Report(exercise, "done", ["all cases agree"])
    if load is None or exercise.install is None:
        return report
    runs = load()
    try:
        compared = runs.compare(exercise, solution)
    except Complaint as error:
        report.state = "failing"
        report.lines.append(str(error))
        return report
    _add_comparison(report, compared, runs.sd)
    return report


def first_problem(exercise: Exercise, solution: Solution) -> list[str]:
    """The first case with another result, and the mistake that explains it; nothing if all are right.

    Raises Complaint, NotWritten.
    """
    return problem_in(exercise, exercise.cases(), lambda case: call(solution, case.arguments, exercise.forbidden))


def problem_in(exercise: Exercise, cases: Sequence[Case], result: Result) -> list[str]:
    """As `first_problem`, for results that may come from another process."""
    for case in cases:
        expected = exercise.reference(*copy.deepcopy(case.arguments))
        try:
            got = result(case)
        except Failed as error:
            names = inspect.signature(exercise.reference).parameters
            given = ", ".join(map(shown, names, case.arguments))
            raise Complaint(f"{case.label}: from {given}, expected {kind(expected)}; {error}") from error
        found = difference(got, expected, exercise.rtol, exercise.atol)
        if found is not None:
            # Somebody who makes two mistakes is told of the one that shows here.
            likely = recognise(exercise, cases, result) or recognise(exercise, [case], result)
            return [f"{case.label}: {found}", *([] if likely is None else [f"likely: {likely}."])]
    return []


def _calls(solution: Solution) -> Result:
    return lambda case: call(solution, case.arguments)


def recognise(exercise: Exercise, cases: Sequence[Case], result: Result) -> str | None:
    """The known mistake that gives these results in all of these cases; an error is a result, too."""
    results = [_or_fails(result, case) for case in cases]
    for mistake in exercise.mistakes:
        wrong = [_or_fails(_calls(mistake.wrong), case) for case in cases]
        if all(agree(a, b, exercise.rtol, exercise.atol) for a, b in zip(results, wrong, strict=True)):
            return mistake.says
    return None


def _or_fails(result: Result, case: Case) -> Any:
    try:
        return result(case)
    except Complaint:
        return "fails"


@torch.no_grad()
def _add_comparison(report: Report, compared: Comparison, sd: StableDiffusion) -> None:
    """The pipeline's part of a report."""
    if compared.first is not None:
        report.state = "failing"
        report.lines.append(f"in the pipeline, first difference: {compared.first}")
        report.lines.append(f"distance of the latents after each step: {listed(compared.drift)}")
    else:
        agrees = (
            "the latents agree" if report.state == "done" else "the image hides it, which is why numbers are compared"
        )
        times = "once" if compared.calls == 1 else f"{compared.calls} times"
        report.lines.append(f"in the pipeline: called {times}; {agrees}")
    mine, theirs = compared.latents
    right = compared.first is None
    report.picture = _drawn(sd, mine) if right else side_by_side(_drawn(sd, mine), _drawn(sd, theirs))


def _drawn(sd: StableDiffusion, latents: Tensor) -> Image.Image:
    return enlarged(images.to_pil(sd.decode(latents).clamp(-1, 1))[0])


def enlarged(image: Image.Image) -> Image.Image:
    """A small image, large enough to look at."""
    times = math.ceil(LEAST_WIDTH / image.width)
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def side_by_side(mine: Image.Image, theirs: Image.Image) -> Image.Image:
    """Yours, the reference's, and where they differ."""
    shown = {"yours": mine, "expected": theirs, "difference": ImageChops.difference(mine, theirs)}
    return images.image_grid([images.captioned(image, text) for text, image in shown.items()], 3, gap=4)
