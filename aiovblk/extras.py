"""Import optional dependencies (extras), with an error that says how to install a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import MissingExtraError


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Import optional packages in this ``with`` block; if one is missing, say how to install it.

    Every import of an optional package stands in such a block, or runs only after one that does.

    Args:
        name: the extra in pyproject.toml that includes the packages.
        purpose: what needs them, for the message: "disks in object stores".

    Raises:
        MissingExtraError: a package is not installed.

    """
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        raise MissingExtraError(
            f"{purpose}: the package {package} is not installed; pip install 'aiovblk[{name}]'",
            name,
        ) from exc
