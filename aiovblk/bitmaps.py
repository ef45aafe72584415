"""Dirty bitmaps: which parts of a device differ from what it was at a named point in time.

A device that knows this has the two methods of :class:`SupportsDirtyBitmaps`, beside its handlers.
A server offers each bitmap to its clients as the metadata context ``qemu:dirty-bitmap:NAME``, and
an incremental backup reads only what is dirty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class DirtyExtent(NamedTuple):
    """A range of bytes, and whether it may differ from what it was at the named point."""

    length: int
    """Bytes; at least 1."""
    dirty: bool
    """False only where nothing was written since then: a dirty range may still be equal."""


@runtime_checkable
class SupportsDirtyBitmaps(Protocol):
    """A device that knows what was written since named points in time.

    Both methods may be called while requests are served, and concurrently.
    """

    async def dirty_bitmaps(self) -> Sequence[str]:
        """Return the names that :meth:`dirty_extents` takes, sorted."""
        ...

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return what is dirty in ``length`` bytes at ``offset``, since the point ``name``.

        Args:
            name: one of :meth:`dirty_bitmaps`.
            offset: bytes; inside the device, a multiple of its block size.
            length: bytes, at least one block; up to the whole device.

        Returns:
            Extents in order from ``offset``: at least one. They may cover less than ``length``
            (ask again from their end), never more.

        Raises:
            KeyError: there is no such bitmap, or no longer.
            OSError: it cannot be read.

        """
        ...
