"""Grading submissions: each in a process of its own, with limits of time and memory.

A submission is a folder with the files of the learner, or one file. It is a stranger's code, and runs with the rights
of whoever grades: grade in a container, or as a user without rights. What it tries beside its task is named.
"""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from minisd._internal.atomic_files import write_json
from minisd._internal.atomic_folders import make_folder
from minisd.errors import InputError
from minisd.exercises.exercise import Exercise

SECONDS, MEGABYTES = 120, 4096


class Grade(NamedTuple):
    """The result of one exercise of a submission. state: "done", "failing", "to do" or "missing"; lines: why."""

    exercise: str
    state: str
    points: float
    of: int
    lines: list[str]


class Graded(NamedTuple):
    """A submission: its name, a grade for each exercise, and what it tried beside its task."""

    name: str
    grades: list[Grade]
    notes: list[str]

    @property
    def points(self) -> float:
        """The sum."""
        return sum(each.points for each in self.grades)


def submissions(folder: Path) -> dict[str, Path]:
    """The folders and Python files in a folder, by name. Raises InputError if there are none."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is no folder, expected one with a folder or a file for each submission.")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    found = {entry.stem: entry for entry in entries if entry.is_dir() or entry.suffix == ".py"}
    if not found:
        raise InputError(f"{folder} has no submissions, expected a folder or a .py file for each.")
    return found


def grade_all(
    folder: Path,
    exercises: Sequence[Exercise],
    seconds: int = SECONDS,
    megabytes: int = MEGABYTES,
    jobs: int = 2,
    tasks: Path | None = None,
) -> list[Graded]:
    """Grade every submission in a folder. Raises InputError.

    jobs: submissions at the same time. tasks: the folder that the exercises were read from by `read_set`.
    """
    found = submissions(folder)
    one = partial(grade, exercises=exercises, seconds=seconds, megabytes=megabytes, tasks=tasks)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, found, found.values()))


def grade(
    name: str, path: Path, exercises: Sequence[Exercise], seconds: int, megabytes: int, tasks: Path | None = None
) -> Graded:
    """Grade one submission in a new process."""
    names = [exercise.name for exercise in exercises]
    command = [sys.executable, "-m", "minisd.exercises.grading_process", str(path), str(megabytes)]
    command += ["" if tasks is None else str(tasks), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    notes: list[str] = []
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, env=environment, text=True, errors="replace", check=False
        )
        found, problem = _answers(done.stdout), f"its process ended with code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
        found, problem = _answers(output or ""), f"it took longer than {seconds} seconds"
    if len(found) < len(names):
        notes.append(problem)
    grades = []
    for exercise in exercises:
        answer = found.get(exercise.name, {"state": "failing", "lines": [f"not graded: {problem}"], "notes": []})
        notes += [note for note in answer["notes"] if note not in notes]
        points = exercise.level if answer["state"] == "done" and not answer["notes"] else 0
        grades.append(Grade(exercise.name, answer["state"], points, exercise.level, answer["lines"]))
    return Graded(name, grades, notes)


def _answers(output: str) -> dict[str, Any]:
    """The lines of the grading process that are its answers."""
    found = {}
    for line in output.splitlines():
        try:
            answer = json.loads(line)
            found[str(answer["exercise"])] = {key: answer[key] for key in ("state", "lines", "notes")}
        except (ValueError, KeyError, TypeError):
            continue
    return found


def write_grades(graded: Sequence[Graded], folder: Path) -> None:
    """Write grades.csv, results.json (Gradescope), and NAME.xml (JUnit) and NAME.txt for each. Raises OutputError."""
    make_folder(folder)
    exercises = [each.exercise for each in graded[0].grades] if graded else []
    with open(folder / "grades.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *exercises, "points", "notes"])
        for each in graded:
            writer.writerow([each.name, *(g.points for g in each.grades), each.points, "; ".join(each.notes)])
    write_json({each.name: _gradescope(each) for each in graded}, folder / "results.json", overwrite=True)
    for each in graded:
        stem = re.sub(r"[^\w.-]", "_", each.name)
        (folder / f"{stem}.txt").write_text(as_text(each), encoding="utf-8")
        _junit(each).write(folder / f"{stem}.xml", encoding="utf-8", xml_declaration=True)


def as_text(graded: Graded) -> str:
    """What the learner reads."""
    lines = [f"{graded.name}: {graded.points:g} of {sum(each.of for each in graded.grades)} points"]
    for each in graded.grades:
        lines += [f"{each.exercise}: {each.state}, {each.points:g} of {each.of}", *(f"  {line}" for line in each.lines)]
    return "\n".join([*lines, *(f"note: {note}" for note in graded.notes)]) + "\n"


def _gradescope(graded: Graded) -> dict[str, Any]:
    """As in results.json of Gradescope's autograder."""
    tests = [
        {"name": each.exercise, "score": each.points, "max_score": each.of, "output": "\n".join(each.lines)}
        for each in graded.grades
    ]
    return {"score": graded.points, "output": "\n".join(graded.notes), "tests": tests}


def _junit(graded: Graded) -> "ElementTree.ElementTree[ElementTree.Element]":
    failures = sum(each.state != "done" for each in graded.grades)
    suite = ElementTree.Element("testsuite", name=graded.name, tests=str(len(graded.grades)), failures=str(failures))
    for each in graded.grades:
        case = ElementTree.SubElement(suite, "testcase", classname=graded.name, name=each.exercise)
        properties = ElementTree.SubElement(case, "properties")
        ElementTree.SubElement(properties, "property", name="points", value=f"{each.points:g}")
        if each.state != "done":
            failure = ElementTree.SubElement(
                case, "failure", message=_plain(each.lines[0] if each.lines else each.state)
            )
            failure.text = _plain("\n".join(each.lines))
    return ElementTree.ElementTree(suite)


def _plain(text: str) -> str:
    """Without control characters, which XML cannot hold."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", text)
