"""Who may import whom: the core stands alone, weights_loader has few users, there are no circles and no long files."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter

from support.source_files import CORE, FILES, HELPERS

BELOW = {*CORE, "adapters", "interpret", "training"}
MAY_IMPORT = {  # a part of minisd: the parts that it may import, at the top of a file or inside a function
    **dict.fromkeys(BELOW, BELOW),
    **dict.fromkeys(CORE, CORE),
    "models": {"configs", "models", *HELPERS},
    "schedulers": {"schedulers", *HELPERS},
    "editing": {"editing", *BELOW},
    "demos": {"demos", "sticker", "weights_loader", *BELOW},
    "app": {"app", "cli", "demos", "face", "weights_loader", *BELOW},
}
MAY_LOAD = {"cli", "course", "exercises", "parity", "sticker"}  # the parts of minisd that may import weights_loader
LONGEST = 300  # lines of a file


def nodes(tree: ast.AST, at_load: bool) -> Iterator[ast.AST]:
    """All nodes; at_load: without functions and `if TYPE_CHECKING`, which do not run when the file is imported."""
    for node in ast.iter_child_nodes(tree):
        is_type_check = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not (at_load and (isinstance(node, ast.FunctionDef) or is_type_check)):
            yield node
            yield from nodes(node, at_load)


@cache
def imports(module: str, at_load: bool = False) -> frozenset[str]:
    """The modules that a file imports: of `from package import name` package.name or, if that is none, the package."""
    found: set[str] = set()
    for node in nodes(ast.parse(FILES[module].read_text(encoding="utf-8")), at_load):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; name the whole module"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return frozenset(found)


def parts(module: str) -> set[str]:
    """The parts of minisd that a file imports ("face": minisd/__init__.py), and this repository's other packages."""
    split = [[*name.split("."), "face"] for name in imports(module)]
    return {
        part if top == "minisd" else top for top, part, *_ in split if top in ("minisd", "weights_loader", "notebooks")
    }


def packages(module: str) -> set[str]:
    """The packages around a module, whose __init__.py files run before it."""
    names = module.split(".")
    return {".".join(names[:depth]) for depth in range(1, len(names))}


def test_every_part_imports_only_what_it_may() -> None:
    for module in FILES:
        library, part = [*module.split("."), "face"][:2]
        loads = "weights_loader" in parts(module)
        if library == "weights_loader":
            assert parts(module) <= {*BELOW, "weights_loader"}, f"{module} imports {parts(module) - BELOW}"
        elif part in MAY_IMPORT:
            assert parts(module) <= MAY_IMPORT[part], f"{module} imports {parts(module) - MAY_IMPORT[part]}"
        else:
            assert part in MAY_LOAD or not loads, f"{module} imports weights_loader"


def test_there_are_no_import_circles() -> None:
    graph = {}
    for module in FILES:
        loaded = imports(module, at_load=True)
        running = {module, *packages(module)}  # what has begun to load before this file
        around = {package for name in loaded for package in packages(name)} - running
        graph[module] = (loaded | around) & FILES.keys() - {module}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_file_is_long() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST} == {}
