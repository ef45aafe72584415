"""Two corrections of what autodoc makes of docstrings and signatures.

Napoleon takes what stands before a colon in the first line of a property or attribute for a type:
"Whether writes are refused: READ_ONLY is advertised." would become a property of type "Whether
writes are refused". Types stand in annotations here, so such a docstring is shown as it is.

Some classes are public and made by functions alone, such as ``mounted``. How their constructors
are called concerns only the package, so it is not shown.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

KINDS = {"attribute", "data", "property"}
"""What Napoleon looks for a type in."""

BEFORE, AFTER = 499, 501
"""Priorities around Napoleon's, which is the usual 500."""

MADE_BY_FUNCTIONS = {
    "aiovblk.Mount",
    "aiovblk.RemoteDevice",
    "aiovblk.Server",
    "aiovblk.storage.HTTPDevice",
    "aiovblk.storage.ObjectStoreDevice",
    "aiovblk.storage.Overlay",
}
"""Classes without a public constructor."""


class AttributeDocstrings:
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


def hide_constructor(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """Return an empty signature for a class that functions make; autodoc calls this."""
    return ("", None) if name in MADE_BY_FUNCTIONS else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the corrections."""
    attributes = AttributeDocstrings()
    app.connect("autodoc-process-docstring", attributes.put_aside, priority=BEFORE)
    app.connect("autodoc-process-docstring", attributes.put_back, priority=AFTER)
    app.connect("autodoc-process-signature", hide_constructor)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
