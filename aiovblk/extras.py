"""Packages that only some need, and what to say where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import MissingExtraError


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Import optional packages in a block, and say how to install the one that is missing.

    Every import of a package that is no dependency stands in such a block, or runs only after one
    that does.

    Args:
        name: of the extra in pyproject.toml that brings the packages.
        purpose: what needs them, for the message: "disks in object stores".

    Raises:
        MissingExtraError: one is not installed.

    """
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        raise MissingExtraError(
            f"{purpose}: the package {package} is not installed; pip install 'aiovblk[{name}]'",
            name,
        ) from exc
