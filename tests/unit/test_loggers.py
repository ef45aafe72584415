"""The whole package logs to one logger, as docs/observability.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import aiovblk

from ..support.syntax_trees import syntax_tree


def logger_names(path: Path) -> list[str]:
    """Return the argument of each call of getLogger() in a file whose result is kept."""
    return [
        ast.unparse(node.value.args[0])
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "logging.getLogger"
    ]


def test_each_module_logs_to_the_logger_of_the_package() -> None:
    package = Path(aiovblk.__file__).parent
    found = {path: names for path in package.rglob("*.py") if (names := logger_names(path))}
    assert len(found) > 20
    forwarding = package / "workers/worker.py"  # a worker's records keep their names
    others = {path: names for path, names in found.items() if set(names) != {"'aiovblk'"}}
    assert others == {forwarding: ["'aiovblk'", "message.name"]}
