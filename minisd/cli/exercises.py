"""`minisd exercises`: list, start and hint need no PyTorch; what the other actions need is imported where they run."""

import argparse
import importlib

from minisd.cli.output import say
from minisd.errors import InputError
from minisd.exercises.learner_folder import hints_read, path_of, progress, record, start
from minisd.exercises.sheets import SHEETS, Sheet, find

LEVELS = "*****"
NEEDED = {
    "run": ("a prompt", "PROMPT"),
    "pack": ("a new folder", "FOLDER"),
    "grade": ("the folder of the submissions", "FOLDER"),
}
MODULES = {  # of the actions that import PyTorch
    "check": "exercise_checks", "solution": "exercise_checks", "run": "exercise_checks",
    "pack": "grading", "grade": "grading",
}  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action not in ("list", "check") and args.name is None:
        wanted, shown = NEEDED.get(args.action, ("the name of an exercise", "NAME"))
        raise InputError(f"{args.action} needs {wanted}: minisd exercises {args.action} {shown}.")
    if args.action in MODULES:
        module = importlib.import_module(f"minisd.cli.{MODULES[args.action]}")
        return int(getattr(module, args.action)(args))
    return {"list": _list, "start": _start, "hint": _hint}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    known = progress(args.folder)
    say("no    name                   level  minutes  lesson  state    title")
    for each in SHEETS.values():
        state = known.get(each.name, {}).get("state", "")
        say(
            f"{each.number:02d}    {each.name:22} {LEVELS[: each.level]:5}  {each.minutes:7}  {each.notebook:>6}  "
            f"{state:8} {each.title}"
        )
    if all(known.get(name, {}).get("state") == "done" for name in SHEETS):
        say("all done; draw with your functions: minisd exercises run PROMPT")
        return 0
    first = _first_open(known)
    begun = path_of(first.name, args.folder).is_file()
    say(f"go on with `minisd exercises {'check' if begun else 'start'} {first.name}`")
    return 0


def _first_open(known: dict[str, dict[str, object]]) -> Sheet:
    """The easiest exercise that is not done."""
    open_ones = [each for each in SHEETS.values() if known.get(each.name, {}).get("state") != "done"]
    return min(open_ones, key=lambda each: (each.level, each.number))


def _start(args: argparse.Namespace) -> int:
    sheet = find(args.name, SHEETS)
    path = start(sheet, args.folder)
    say(f"{path}  write the function, then: minisd exercises check {sheet.name}")
    say(f"if you are stuck: minisd exercises hint {sheet.name}")
    if sheet.needs:
        say(f"do before it: {', '.join(sheet.needs)}")
    return 0


def _hint(args: argparse.Namespace) -> int:
    sheet = find(args.name, SHEETS)
    number = min(hints_read(sheet.name, args.folder) + 1, len(sheet.hints))
    say(f"hint {number} of {len(sheet.hints)}: {sheet.hints[number - 1]}")
    record(args.folder, sheet.name, hints=number)
    return 0
