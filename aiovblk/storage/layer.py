"""The base class of storage layers: a device on top of another, ``inner``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..bitmaps import DirtyExtent, find_dirty, list_bitmaps
from ..contract import check_inner
from ..device import BlockDevice, Extent, missing_operations


class Layer(BlockDevice):
    """A device on top of another, ``inner``, that passes on everything it does not override.

    Requests, the geometry, and in the end :meth:`unmount` go to ``inner`` unchanged. A subclass
    that overrides :meth:`write` must override :meth:`write_zeroes` and :meth:`trim` too, for they
    do not come by way of its :meth:`write`. One that overrides :meth:`unmount` releases its own
    resources, and then those of ``inner`` (``super().unmount()``), whatever has failed.

    **Capabilities.** The layer can do what ``inner`` can (:func:`aiovblk.device.can`), and what
    :attr:`provides` names. An operation that ``inner`` lacks is lacking here as well, even if the
    subclass overrides it: nothing is promised to the kernel that ends in an error.

    **Dirty bitmaps** of ``inner`` are passed on only if :attr:`passes_bitmaps` says so. Otherwise
    the layer has none, unless it overrides :meth:`dirty_bitmaps` and :meth:`dirty_extents`.

    Durability: that of ``inner``. Concurrency: that of ``inner``.

    Args:
        inner: the device below. The layer owns it from now on: nothing else may write to it or
            unmount it.

    Raises:
        TypeError: not a BlockDevice, or a handler that cannot be called and awaited.

    """

    provides: ClassVar[frozenset[str]] = frozenset()
    """Operations (names of handlers) that this layer supports even if ``inner`` does not."""

    passes_bitmaps: bool = False
    """Whether what the dirty bitmaps of ``inner`` say is true of this layer as well: each of its
    bytes is the byte of ``inner`` at the same offset, and a write has reached ``inner`` when it
    returns. A layer that shifts offsets overrides :meth:`dirty_extents` too."""

    def __init__(self, inner: BlockDevice) -> None:
        self.inner = check_inner(inner)
        self.block_size = inner.block_size
        self.rotational = inner.rotational
        self.multi_conn = inner.multi_conn
        self.outages = inner.outages
        self._unsupported = missing_operations(inner) - self.provides - {"read"}

    if not TYPE_CHECKING:  # a subclass may replace these by attributes, see BlockDevice

        @property
        def blocks(self) -> int:
            """The number of blocks of ``inner``."""
            return self.inner.blocks

        @blocks.setter
        def blocks(self, value: int) -> None:
            self.inner.blocks = value

        @property
        def read_only(self) -> bool:
            """Whether ``inner`` is read-only, unless this was set."""
            return self.inner.read_only if self._read_only is None else self._read_only

        @read_only.setter
        def read_only(self, value: bool) -> None:
            self._read_only = value

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from ``inner``."""
        return await self.inner.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to ``inner``."""
        await self.inner.write(offset, data)

    async def flush(self) -> None:
        """Flush ``inner``."""
        await self.inner.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Pass the hint on to ``inner``."""
        await self.inner.trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Have ``inner`` write zeroes; by way of :meth:`write` if ``inner`` can only write."""
        if "write_zeroes" in self._unsupported:
            await super().write_zeroes(offset, length, may_trim=may_trim)
            return
        await self.inner.write_zeroes(offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the extents of ``inner``."""
        return await self.inner.extents(offset, length)

    async def cache(self, offset: int, length: int) -> None:
        """Pass the hint on to ``inner``."""
        await self.inner.cache(offset, length)

    async def dirty_bitmaps(self) -> Sequence[str]:
        """Return the names of the dirty bitmaps of ``inner``, if they are passed on."""
        return await list_bitmaps(self.inner) if self.passes_bitmaps else ()

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return what is dirty in ``inner``, if its bitmaps are passed on; KeyError if not."""
        if not self.passes_bitmaps:
            raise KeyError(name)
        return await find_dirty(self.inner, name, offset, length)

    async def unmount(self) -> None:
        """Unmount ``inner``."""
        await self.inner.unmount()
