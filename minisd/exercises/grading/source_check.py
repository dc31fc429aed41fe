"""What can be seen in a submission without running it: an import of the answers."""

import ast
from collections.abc import Iterator

PACKAGE = "minisd.exercises"
FOR_LEARNERS = {"check", "hints"}  # of the package; while it is graded they do nothing


def imports_of_answers(code: bytes, path: str) -> str | None:
    """The first import of answers, as a sentence with its line; None where there is none, or no Python either."""
    try:
        tree = ast.parse(code, path)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # whoever runs it says why
    for node in _nodes(tree):
        for name in _imported(node):
            if name.startswith(f"{PACKAGE}."):
                return f"line {node.lineno}: it imports {name}, which leads to the answers; a submission may not."
    return None


def _nodes(tree: ast.Module) -> Iterator[ast.expr | ast.stmt]:
    """All statements and expressions, except below `if __name__ == "__main__"`, which does not run when graded."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.expr | ast.stmt):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


def _imported(node: ast.expr | ast.stmt) -> list[str]:
    """The dotted names that a statement, or a call of an importing function, imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name for name in whole if name not in {f"{PACKAGE}.{each}" for each in FOR_LEARNERS}]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).rpartition(".")[2]
        return [str(node.args[0].value)] if called in ("import_module", "__import__") else []
    return []
