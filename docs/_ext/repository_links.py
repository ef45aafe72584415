"""Pages of the site that are files of the repository, and links between the two.

``CONTRIBUTING.md`` and its like stand where everybody looks for them, at the top of the repository.
The site shows them all the same: the page named in :data:`PAGES` has their text in place of its
own. A link to one of them, from any page, leads to that page; one to another file of the
repository, such as an example, offers that file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent

PAGES = {
    "contributing": ROOT / "CONTRIBUTING.md",
    "changelog": ROOT / "CHANGELOG.md",
    "code-of-conduct": ROOT / "CODE_OF_CONDUCT.md",
    "explanation/security": ROOT / "SECURITY.md",
}
"""Names of pages, and the files that have their text."""

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
"""The target of a Markdown link, without its anchor, unless it is an address or an anchor."""


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Give a page the text of its file, and have its links lead to pages; Sphinx calls this."""
    page = DOCS / f"{name}.md"
    file = PAGES.get(name, page)
    text = source[0]
    if file != page:
        app.env.note_dependency(str(file))
        text = file.read_text()
    source[0] = LINK.sub(lambda match: target(match[1], file, page), text)


def target(link: str, file: Path, page: Path) -> str:
    """Return a link of `file` as it has to be written in `page`."""
    path = (file.parent / link).resolve()
    for name, shown in PAGES.items():
        if path == shown:
            path = DOCS / f"{name}.md"
    return os.path.relpath(path, page.parent)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the reader."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
