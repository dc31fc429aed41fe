"""From what a learner's functions return to grades: the checker's words, and points."""

import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from minisd._internal.messages import printable
from minisd.exercises.checking import problem_in
from minisd.exercises.exercise import Case, Exercise
from minisd.exercises.grading import wire
from minisd.exercises.grading.process import Ended, SubmissionProcess
from minisd.exercises.grading.runner import KINDS, Request
from minisd.exercises.grading.submissions import NotReadable, Submission
from minisd.exercises.inputs import drawn_for
from minisd.exercises.learner_code import Complaint

DONE, MISSING, ENDED = "done", "missing", "ended"
STATES = {
    DONE: "all results are right",
    "failing": "a result is wrong, or the code fails",
    "to do": "the function is not written yet",
    MISSING: "it was not handed in",
    "refused": "it uses what it may not use",
    ENDED: "its process ended, or had to be ended, before it answered",
}
COMPLAINTS = {kind: of for of, kind in KINDS.items()}


class Limits(NamedTuple):
    """For each exercise: seconds, and MiB of memory beyond what PyTorch takes."""

    seconds: float = 10.0
    memory: int = 1024


@dataclass(frozen=True)
class Grade:
    """The grade of one exercise of one learner. state: one of STATES. message: for the learner."""

    exercise: Exercise
    state: str
    message: str

    @property
    def points(self) -> int:
        """All points if it is right, otherwise none."""
        return self.exercise.points if self.state == DONE else 0


@dataclass(frozen=True)
class Graded:
    """One learner's grades, in the order of the exercises."""

    learner: str
    grades: tuple[Grade, ...]

    @property
    def points(self) -> int:
        """The sum."""
        return sum(each.points for each in self.grades)

    @property
    def most(self) -> int:
        """The largest possible sum."""
        return sum(each.exercise.points for each in self.grades)


class Paper(NamedTuple):
    """An exercise with the inputs of this run."""

    exercise: Exercise
    cases: Sequence[Case]
    arguments: bytes  # of the cases, pickled for the submission's process


def grade_all(
    submissions: Sequence[Submission],
    exercises: Sequence[Exercise],
    seed: int,
    limits: Limits,
    jobs: int,
    report: Callable[[Graded], None],
) -> list[Graded]:
    """Grade all submissions, `jobs` at a time; seed: of the inputs. report: called with each learner's grades."""
    with drawn_for(seed):
        papers = [_paper(exercise) for exercise in exercises]
    graded = []
    with ThreadPoolExecutor(jobs) as pool:  # the threads only wait for the processes; this one compares
        waiting = [pool.submit(_replies, each, papers, limits) for each in submissions]
        try:
            for submission, replies in zip(submissions, waiting, strict=True):
                grades = tuple(map(_grade, papers, replies.result()))
                graded.append(Graded(submission.learner, grades))
                report(graded[-1])
        except BaseException:  # Ctrl-C: not the whole class, please
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return graded


def refused_names(exercise: Exercise) -> tuple[str, ...]:
    """The functions that a submission may not call: what does the whole work, and the library's own answer."""
    answer = exercise.answer
    own = (f"{answer.__module__}.{answer.__qualname__}",) if inspect.isfunction(answer) else ()
    return (*exercise.forbidden, *own)


def _paper(exercise: Exercise) -> Paper:
    cases = exercise.cases()
    return Paper(exercise, cases, pickle.dumps([case.arguments for case in cases]))


def _replies(submission: Submission, papers: Sequence[Paper], limits: Limits) -> list[bytes | tuple[str, str]]:
    """For each exercise the message of the submission's process, or a state and a sentence where there is none."""
    replies: list[bytes | tuple[str, str]] = []
    with SubmissionProcess() as process:
        for paper in papers:
            exercise = paper.exercise
            try:
                found = submission.code_of(exercise.name)
                if found is None:
                    replies.append((MISSING, "it was not handed in."))
                    continue
                request = Request(exercise.name, *found, paper.arguments, refused_names(exercise), *limits)
                replies.append(process.ask(request))
            except NotReadable as error:
                replies.append((MISSING, str(error)))
            except Ended as error:
                replies.append((ENDED, f"{error}."))
    return replies


def _grade(paper: Paper, reply: bytes | tuple[str, str]) -> Grade:
    if isinstance(reply, tuple):
        return Grade(paper.exercise, reply[0], printable(reply[1]))
    try:
        results = _results(paper, reply)
    except wire.Unreadable:
        return Grade(paper.exercise, ENDED, "it wrote into the grader's pipe.")

    def result(case: Case) -> Any:
        kind, value = results[id(case)]
        if kind == "value":
            return value
        raise COMPLAINTS[kind](value)

    try:
        lines = problem_in(paper.exercise, paper.cases, result)
    except Complaint as error:
        state = next(kind for of, kind in KINDS.items() if isinstance(error, of))
        return Grade(paper.exercise, state, str(error))
    message = printable(" ".join(lines)) if lines else "all cases agree."
    return Grade(paper.exercise, "failing" if lines else DONE, message)


def _results(paper: Paper, reply: bytes) -> Mapping[int, tuple[str, Any]]:
    """The result of each case, by its identity; the last one stands for those that were not run. Raises Unreadable."""
    results = wire.read(reply)
    if not isinstance(results, list) or not 0 < len(results) <= len(paper.cases):
        raise wire.Unreadable("not a list of results")
    for each in results:
        is_pair = isinstance(each, list) and len(each) == 2 and isinstance(each[0], str)
        if not is_pair or not (each[0] == "value" or (each[0] in COMPLAINTS and isinstance(each[1], str))):
            raise wire.Unreadable("not a result")
    missing = len(paper.cases) - len(results)
    if missing and results[-1][0] == "value":
        results.append(["failing", "it takes too long; does a loop never end?"])
    results += [results[-1]] * (len(paper.cases) - len(results))
    return {id(case): (kind, value) for case, (kind, value) in zip(paper.cases, results, strict=True)}
