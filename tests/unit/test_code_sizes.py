"""Limits of the package's code: sizes of files, classes and functions, and one class for a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import aiovblk

from ..support.syntax_trees import syntax_tree

FILE, CLASS, FUNCTION = 400, 300, 50
"""Lines at most; of a function without its parameters and its docstring."""

REASON = f"more than {FUNCTION} lines:"
"""What the docstring of a longer function has, and the reason after it."""

PACKAGE = Path(aiovblk.__file__).parent


def modules() -> dict[Path, ast.Module]:
    """The package's modules, by their paths in it."""
    return {path.relative_to(PACKAGE): syntax_tree(path) for path in PACKAGE.rglob("*.py")}


def nodes(kind: type[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Each node of a kind, and what to call it."""
    for path, module in modules().items():
        for node in ast.walk(module):
            if isinstance(node, kind):
                yield f"{path}:{node.lineno}", node


def lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function after its docstring."""
    first = function.body[ast.get_docstring(function) is not None :][:1]
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


def test_files_are_short() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > FILE} == {}


def test_classes_are_short() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in nodes(ast.ClassDef)}
    assert {name: length for name, length in lengths.items() if length > CLASS} == {}


def test_functions_are_short_or_say_why_not() -> None:
    found = {}
    for kind in (ast.FunctionDef, ast.AsyncFunctionDef):
        for name, node in nodes(kind):
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            length = lines_of_body(node)
            said = " ".join((ast.get_docstring(node) or "").split())
            if length > FUNCTION and REASON not in said:
                found[name] = length
    assert found == {}


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path, module in modules().items():
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}
