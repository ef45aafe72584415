"""Format tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..text import escape


def format_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a header and a line per row, in columns.

    What is in the rows is escaped: a process chooses its own name, say, and a peer its description.
    """
    lines = [tuple(columns), *(tuple(map(escape, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
