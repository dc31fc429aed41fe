"""Grades as files and as a table: grades.csv, junit.xml and, for each learner, Gradescope's results.json."""

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minisd._internal.atomic_files import write_json, write_text
from minisd._internal.atomic_folders import FileSet, replace_files
from minisd.exercises.grading.grades import DONE, ENDED, STATES, Grade, Graded

NAMED = ("refused", ENDED)  # states that an instructor should look at
FILES = FileSet("grades.csv", re.compile(r"grades\.csv|junit\.xml|learners/[^/]+/(results\.json|feedback\.txt)"))


def write_results(graded: Sequence[Graded], folder: Path, seed: int, overwrite: bool = False) -> None:
    """Write all files. seed: of the inputs, with which the run can be repeated. Raises OutputError."""

    def write(place: Path) -> None:
        write_text(as_csv(graded), place / "grades.csv")
        write_text(as_junit(graded, seed), place / "junit.xml")
        for each in graded:
            own = place / "learners" / each.learner
            own.mkdir(parents=True)
            write_json(for_gradescope(each, seed), own / "results.json")
            write_text(feedback(each), own / "feedback.txt")

    replace_files(folder, write, FILES, overwrite)


def as_csv(graded: Sequence[Graded]) -> str:
    """A row for each learner: the sum, the points of each exercise, and what an instructor should look at."""
    names = [each.exercise.name for each in graded[0].grades]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["learner", "score", "max_score", *names, "notes"])
    for each in graded:
        notes = "; ".join(f"{g.exercise.name} {g.state}: {g.message}" for g in each.grades if g.state in NAMED)
        points = [grade.points for grade in each.grades]
        rows.writerow([_no_formula(each.learner), each.points, each.most, *points, notes])
    return text.getvalue()


def as_junit(graded: Sequence[Graded], seed: int) -> str:
    """A test suite for each learner, a test case for each exercise."""
    root = ET.Element("testsuites", name="minisd exercises")
    for each in graded:
        lost = [grade for grade in each.grades if grade.state != DONE]
        errors = sum(grade.state in NAMED for grade in lost)
        counts = {"tests": len(each.grades), "failures": len(lost) - errors, "errors": errors, "skipped": 0}
        numbers = {name: str(count) for name, count in counts.items()}
        suite = ET.SubElement(root, "testsuite", {"name": each.learner, **numbers})
        _properties(suite, seed=seed, score=each.points, max_score=each.most)
        for grade in each.grades:
            case = ET.SubElement(suite, "testcase", classname=each.learner, name=grade.exercise.name)
            _properties(case, points=grade.points, max_points=grade.exercise.points)
            if grade.state != DONE:
                kind = "error" if grade.state in NAMED else "failure"
                ET.SubElement(case, kind, type=grade.state, message=grade.message)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def for_gradescope(each: Graded, seed: int) -> dict[str, Any]:
    """What Gradescope reads as results.json (gradescope-autograders.readthedocs.io, "Output format")."""
    return {
        "score": each.points,
        "output": f"{each.points} of {each.most} points",
        "visibility": "visible",
        "extra_data": {"seed": seed, "max_score": each.most},
        "tests": [
            {
                "name": grade.exercise.name,
                "number": str(grade.exercise.number),
                "score": grade.points,
                "max_score": grade.exercise.points,
                "status": "passed" if grade.state == DONE else "failed",
                "output": _sentence(grade),
            }
            for grade in each.grades
        ],
    }


def feedback(each: Graded) -> str:
    """The same for a learner to read."""
    lines = [f"{g.exercise.name}: {g.points} of {g.exercise.points} points\n  {_sentence(g)}" for g in each.grades]
    return "\n".join([*lines, f"\n{each.points} of {each.most} points\n"])


def table(graded: Sequence[Graded]) -> str:
    """A row for each learner, in Markdown: points where an exercise is right, otherwise its state."""
    names = [each.exercise.name for each in graded[0].grades]
    rows = [["learner", *names, "points"]]
    for each in graded:
        cells = [str(grade.points) if grade.state == DONE else grade.state for grade in each.grades]
        rows.append([each.learner, *cells, f"{each.points} of {each.most}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def legend(graded: Sequence[Graded]) -> list[str]:
    """What the states in a table mean, of those that occur."""
    seen = {grade.state for each in graded for grade in each.grades} - {DONE}
    return [f"{state}: {meaning}" for state, meaning in STATES.items() if state in seen]


def _sentence(grade: Grade) -> str:
    return f"{grade.state}: {grade.message}"


def _properties(element: ET.Element, **values: int) -> None:
    properties = ET.SubElement(element, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", name=name, value=str(value))


def _no_formula(text: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
