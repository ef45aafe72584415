"""The base class of layers: a device on top of another device."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, ClassVar

from ..contract import check_inner
from ..device import BlockDevice, Extent, overrides

_OPTIONAL = (
    BlockDevice.write,
    BlockDevice.flush,
    BlockDevice.trim,
    BlockDevice.write_zeroes,
    BlockDevice.extents,
    BlockDevice.cache,
)


class Layer(BlockDevice):
    """A device on top of another, ``inner``, from which it differs in one respect.

    Everything that a subclass does not override is forwarded to ``inner``: requests, the geometry,
    and :meth:`unmount`. A subclass that overrides :meth:`write` must handle :meth:`write_zeroes`
    and :meth:`trim` too: they do not call its :meth:`write`. One that overrides :meth:`unmount`
    releases its own resources first and then unmounts ``inner`` (``super().unmount()``), even if
    the first step has failed.

    What ``inner`` cannot do the layer cannot do either, whether the subclass overrides it or not:
    otherwise the kernel would be promised what ends in an error. :attr:`provides` names what a
    layer can do by itself.

    Durability: that of ``inner``. Concurrency: that of ``inner``.

    Args:
        inner: the device below. The layer owns it from now on: only the layer should write to it
            and unmount it.

    Raises:
        TypeError: it is no BlockDevice, or has a handler that cannot be called and awaited.

    """

    provides: ClassVar[frozenset[str]] = frozenset()
    """The names of the handlers that this layer has even if ``inner`` does not."""

    def __init__(self, inner: BlockDevice) -> None:
        self.inner = check_inner(inner)
        self.block_size = inner.block_size
        self.rotational = inner.rotational
        self.multi_conn = inner.multi_conn
        self.outages = inner.outages
        for method in _OPTIONAL:
            if method.__name__ not in self.provides and not overrides(inner, method):
                setattr(self, method.__name__, MethodType(method, self))

    if not TYPE_CHECKING:  # a subclass may replace these by attributes, see BlockDevice

        @property
        def blocks(self) -> int:
            """The number of blocks of ``inner``; setting it resizes ``inner``."""
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
        """Forward the hint to ``inner``."""
        await self.inner.trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes to ``inner``."""
        await self.inner.write_zeroes(offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the extents of ``inner``."""
        return await self.inner.extents(offset, length)

    async def cache(self, offset: int, length: int) -> None:
        """Forward the hint to ``inner``."""
        await self.inner.cache(offset, length)

    async def unmount(self) -> None:
        """Unmount ``inner``."""
        await self.inner.unmount()
