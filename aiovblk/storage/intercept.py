"""The base class of layers that treat all requests alike: retry, count, fail, log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ..device import Extent
from .layer import Layer

T = TypeVar("T")


class Intercept(Layer):
    """Passes each request through one method, :meth:`intercept`, which a subclass overrides.

    Only :meth:`unmount` does not go through it.
    """

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Run one request.

        Args:
            command: the name of its handler: ``read``, ``write`` and so on.
            offset: bytes; 0 for ``flush``.
            length: bytes; 0 for ``flush``.
            call: forwards the request to ``inner``; may be called any number of times.

        Returns:
            What ``call`` returned.

        """
        return await call()

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read through :meth:`intercept`."""
        return await self.intercept("read", offset, length, lambda: self.inner.read(offset, length))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write through :meth:`intercept`."""
        await self.intercept("write", offset, len(data), lambda: self.inner.write(offset, data))

    async def flush(self) -> None:
        """Flush through :meth:`intercept`."""
        await self.intercept("flush", 0, 0, self.inner.flush)

    async def trim(self, offset: int, length: int) -> None:
        """Trim through :meth:`intercept`."""
        await self.intercept("trim", offset, length, lambda: self.inner.trim(offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes through :meth:`intercept`."""
        await self.intercept(
            "write_zeroes",
            offset,
            length,
            lambda: self.inner.write_zeroes(offset, length, may_trim=may_trim),
        )

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return extents through :meth:`intercept`."""
        return await self.intercept(
            "extents", offset, length, lambda: self.inner.extents(offset, length)
        )

    async def cache(self, offset: int, length: int) -> None:
        """Forward the hint through :meth:`intercept`."""
        await self.intercept("cache", offset, length, lambda: self.inner.cache(offset, length))
