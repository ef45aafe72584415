"""Keep the colons in docstrings of properties and attributes.

Napoleon takes what stands before a colon in their first line for a type: "Whether writes are
refused: READ_ONLY is advertised." would become a property of type "Whether writes are refused".
Types stand in annotations here, so such a docstring is shown as it is.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

KINDS = {"attribute", "data", "property"}
"""What Napoleon does that to."""

BEFORE, AFTER = 499, 501
"""Priorities around Napoleon's, which is the usual 500."""


class Docstrings:
    """Puts a docstring aside before Napoleon sees it, and back afterwards."""

    def __init__(self) -> None:
        self._aside: dict[str, list[str]] = {}

    def put_aside(
        self, app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
    ) -> None:
        """Empty a docstring; autodoc calls this."""
        if what in KINDS:
            self._aside[name] = list(lines)
            lines.clear()

    def put_back(
        self, app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
    ) -> None:
        """Fill it in again; autodoc calls this."""
        if what in KINDS:
            lines[:] = self._aside.pop(name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both, for each docstring."""
    docstrings = Docstrings()
    app.connect("autodoc-process-docstring", docstrings.put_aside, priority=BEFORE)
    app.connect("autodoc-process-docstring", docstrings.put_back, priority=AFTER)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
