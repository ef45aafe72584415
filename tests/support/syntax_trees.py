"""Python files, parsed: several tests look at each file of the package, which takes a second."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def syntax_tree(path: Path) -> ast.Module:
    """Parse a file that does not change."""
    return ast.parse(path.read_text())
