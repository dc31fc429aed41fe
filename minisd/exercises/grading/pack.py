"""What an instructor hands out: starter files and a page about them, and beside it the file for the answers."""

from collections.abc import Sequence
from pathlib import Path

from minisd._internal.atomic_files import write_text
from minisd._internal.atomic_folders import check_folder, make_folder
from minisd.exercises.exercise import Exercise
from minisd.exercises.grading.answers import template
from minisd.exercises.grading.grades import Limits

PAGE = """# Exercises

Write the function in each file. Hand in the files, in one folder.

| exercise | points | minutes |
|---|---|---|
{rows}

- The text at the top of each function says what it gets and what it returns. {checked}
- Each file is run alone: it may import PyTorch, NumPy, minisd and the standard library, but none of your other files.
- A function returns its result. It changes none of its arguments, draws no random numbers, and ends within {seconds:g}
  seconds.
- It must not call what does the whole work: PyTorch's or the library's own function for it. It must not import
  `minisd.exercises`, but for `check` and `hints`, or start processes, or write files.
- The grader draws its inputs anew each time. A right function gets all points, a wrong one none, and a sentence that
  says why.
"""


def write_pack(exercises: Sequence[Exercise], graded: Sequence[Exercise], folder: Path, command: str) -> list[Path]:
    """Write the handout and, with graded tasks, answers.py beside it; gives their paths. Raises OutputError.

    command: how the submissions will be graded.
    """
    check_folder(folder, overwrite=False)
    handout = folder / "handout"
    make_folder(handout)
    both = [*exercises, *graded]
    write_text(_page(both, exercises), handout / "README.md")
    for exercise in both:
        write_text(exercise.starter, handout / f"{exercise.name}.py")
    if not graded:
        return [handout]
    write_text(template(graded, command), folder / "answers.py")
    return [handout, folder / "answers.py"]


def _page(both: Sequence[Exercise], checked: Sequence[Exercise]) -> str:
    rows = "\n".join(f"| `{each.name}` {each.title} | {each.points} | {each.minutes} |" for each in both)
    names = ", ".join(f"`{each.name}`" for each in checked)
    note = f"`minisd exercises check NAME --folder .` checks {names}." if names else ""
    return PAGE.format(rows=rows, checked=note, seconds=Limits().seconds)
