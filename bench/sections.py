"""Sections of a page in Markdown that another run of the benchmark has written.

The tables of ``performance.md`` come from two programs, on different machines and at different
times: each replaces its own sections, and keeps the other's.
"""

from __future__ import annotations

import re

UBLK = "ublk beside NBD, in a kernel"  # the section of bench.ublk


def section(page: str, title: str) -> str | None:
    """The text below a heading of the second level; None where it is missing."""
    found = _pattern(title).search(page)
    return found["text"].strip() if found else None


def with_section(page: str, title: str, text: str) -> str:
    """The page with that text below the heading; at the end where it was missing."""
    found = _pattern(title).search(page)
    start, end = found.span() if found else (len(page), len(page))
    parts = [page[:start].rstrip(), f"## {title}", text.strip(), page[end:].strip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _pattern(title: str) -> re.Pattern[str]:
    heading = rf"^## {re.escape(title)}\n"
    return re.compile(heading + r"(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
