"""The process of one submission: python -m minisd.exercises.grading_process PATH MEGABYTES TASKS NAME...

TASKS is a folder of tasks, or "" for the exercises. It prints one line of JSON for each name. An audit hook stops and
names what a solution has no business to do.
"""

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

from minisd.exercises import learner_code
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.checking import Report, check_solution
from minisd.exercises.exercise import Exercise
from minisd.exercises.learner_code import Complaint, load
from minisd.exercises.task_sets import read_set

ALLOWED = {"torch", "numpy", "math", "typing", "collections", "functools", "itertools", "dataclasses", "__future__"}
REFUSED_NAMES = {"eval", "exec", "compile", "open", "__import__", "globals", "vars", "breakpoint", "input", "setattr"}
REFUSED_EVENTS = {
    "subprocess.Popen": "starts a process",
    "os.system": "starts a process",
    "os.fork": "starts a process",
    "os.exec": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.kill": "ends a process",
    "socket.connect": "connects to a network",
    "os.remove": "removes a file",
    "os.rename": "renames a file",
    "shutil.rmtree": "removes a folder",
    "ctypes.dlopen": "loads a library",
}


class Guard:
    """Names what a solution tries beside its task; it refuses it while the solution runs."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not learner_code.RUNNING:
            return
        what = REFUSED_EVENTS.get(event)
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            writes = isinstance(arguments[1], str) and any(letter in arguments[1] for letter in "wax+")
            name = os.fsdecode(arguments[0])
            if writes:
                what = "writes a file"
            elif "exercises" in Path(name).parts and name.endswith((".py", ".json", ".safetensors")):
                what = "reads the answers"
        if what is not None:
            self.note(f"it {what} ({event})")
            raise PermissionError(f"a solution may not do this: it {what}")

    def note(self, text: str) -> None:
        """Keep a note, once."""
        if text not in self.notes:
            self.notes.append(text)


def suspicious(text: str) -> list[str]:
    """What the code of a submission does that a solution need not do, found without running it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        found += [f"it imports {name}" for name in names if name.split(".")[0] not in ALLOWED]
        if isinstance(node, ast.Name) and node.id in REFUSED_NAMES:
            found.append(f"it uses {node.id}")
        if isinstance(node, ast.Attribute) and node.attr.startswith("__") and node.attr != "__init__":
            found.append(f"it uses {node.attr}")
    return list(dict.fromkeys(found))


def answer(exercise: Exercise, path: Path, guard: Guard) -> dict[str, Any]:
    """The answer about one exercise of a submission."""
    file = path if path.is_file() else path / f"{exercise.name}.py"
    guard.notes.clear()
    if not file.is_file():
        return {"exercise": exercise.name, "state": "missing", "lines": [f"{file.name} is missing"], "notes": []}
    for note in suspicious(file.read_text(encoding="utf-8", errors="replace")):
        guard.note(note)
    if guard.notes:
        return {"exercise": exercise.name, "state": "failing", "lines": ["not run"], "notes": list(guard.notes)}
    try:
        report = check_solution(exercise, load(str(file), exercise.name))
    except Complaint as error:
        report = Report(exercise, "failing", [str(error)])
    return {"exercise": exercise.name, "state": report.state, "lines": report.lines, "notes": list(guard.notes)}


def limit_memory(megabytes: int) -> None:
    """Refuse more memory than this, beyond what is in use, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)


def main(arguments: list[str]) -> None:
    """Grade the exercises of one submission."""
    path, megabytes, tasks, names = Path(arguments[0]).resolve(), int(arguments[1]), arguments[2], arguments[3:]
    known = read_set(Path(tasks)) if tasks else EXERCISES
    output = os.dup(1)  # what a solution prints must not look like an answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if sys.platform == "linux":
        limit_memory(megabytes)
    guard = Guard()
    for name in names:
        line = json.dumps(answer(known[name], path, guard)) + "\n"
        os.write(output, line.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
