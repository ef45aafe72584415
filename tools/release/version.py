"""Check that a tag, the package's version and the changelog agree."""

import ast
import re
from pathlib import Path

from .console import PackagingError

HEADING = re.compile(r"^## \[(?P<version>\d[^\]]*)\] - (?P<date>\d{4}-\d{2}-\d{2})$", re.MULTILINE)


def check_tag(root: Path, tag: str) -> str:
    """Check that a tag is that of the version in the checkout, and in the changelog.

    Args:
        root: the checkout.
        tag: ``v1.2.3``.

    Returns:
        What CHANGELOG.md says of this version.

    Raises:
        PackagingError: they do not agree; says what is to be changed.
    """
    version = version_of(root)
    if tag != f"v{version}":
        raise PackagingError(
            f"the tag {tag} is not of version {version}: change __version__ in aiovblk/__init__.py,"
            f" or tag v{version}"
        )
    return notes(root, version)


def version_of(root: Path) -> str:
    """Return the version of a checkout, without importing it."""
    tree = ast.parse((root / "aiovblk/__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise PackagingError("aiovblk/__init__.py has no __version__")


def notes(root: Path, version: str) -> str:
    """Return what CHANGELOG.md says of a version.

    Raises:
        PackagingError: it has no heading of that version with a date, or nothing below it.
    """
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    for found in HEADING.finditer(text):
        if found["version"] == version:
            changes = re.split(r"^## ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[
                0
            ].strip()
            if changes:
                return changes
    raise PackagingError(
        f"CHANGELOG.md tells nothing of {version}: it needs `## [{version}] - YYYY-MM-DD`, with"
        " what was below [Unreleased]"
    )
