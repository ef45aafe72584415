"""A layer that treats every request alike: one hook around all handlers (middleware)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from ..bitmaps import DirtyExtent
from ..device import Extent, Operation
from .layer import Layer

T = TypeVar("T")


class Intercept(Layer):
    """Passes each request through one method, :meth:`intercept`, which a subclass overrides.

    :meth:`unmount` does not, nor does an operation that ``inner`` cannot do
    (:func:`aiovblk.device.can`): that is as in :class:`~aiovblk.BlockDevice`.
    """

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Make one request: call ``call``, with anything before, after or instead of it.

        Args:
            command: the name of its handler: ``read``, ``write`` and so on.
            offset: bytes; 0 for ``flush``.
            length: bytes; 0 for ``flush``.
            call: makes the request to ``inner``; may be called any number of times.

        Returns:
            What ``call`` returned.

        """
        return await call()

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read through :meth:`intercept`."""
        return await self.intercept("read", offset, length, lambda: self.inner.read(offset, length))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write, by way of :meth:`intercept`."""
        await self._make("write", offset, len(data), lambda: self.inner.write(offset, data))

    async def flush(self) -> None:
        """Flush, by way of :meth:`intercept`."""
        await self._make("flush", 0, 0, self.inner.flush)

    async def trim(self, offset: int, length: int) -> None:
        """Trim, by way of :meth:`intercept`."""
        await self._make("trim", offset, length, lambda: self.inner.trim(offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes, by way of :meth:`intercept`; as writes if ``inner`` can only write."""
        if "write_zeroes" in self._unsupported:
            await super().write_zeroes(offset, length, may_trim=may_trim)
            return
        await self.intercept(
            "write_zeroes",
            offset,
            length,
            lambda: self.inner.write_zeroes(offset, length, may_trim=may_trim),
        )

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the extents of ``inner``, by way of :meth:`intercept`."""
        return await self._make(
            "extents", offset, length, lambda: self.inner.extents(offset, length)
        )

    async def cache(self, offset: int, length: int) -> None:
        """Pass the hint on, by way of :meth:`intercept`."""
        await self._make("cache", offset, length, lambda: self.inner.cache(offset, length))

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return what is dirty in ``inner``, by way of :meth:`intercept`, as ``extents``."""
        call = partial(super().dirty_extents, name, offset, length)
        return await self.intercept("extents", offset, length, call)

    def _make(
        self, command: Operation, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> Awaitable[T]:
        """Make a request by way of :meth:`intercept`, if ``inner`` can do what it asks for."""
        if command in self._unsupported:
            return call()
        return self.intercept(command, offset, length, call)
