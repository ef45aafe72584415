"""A layer that does the same to every request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ..device import Extent
from .layer import Layer

T = TypeVar("T")


class Intercept(Layer):
    """A layer whose requests all go through :meth:`intercept`, which a subclass overrides.

    :meth:`unmount` does not.
    """

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Make one request.

        Args:
            command: the name of its handler: ``read``, ``write`` and so on.
            offset: bytes; 0 for ``flush``.
            length: bytes; 0 for ``flush``.
            call: has ``inner`` do it; may be called any number of times.

        Returns:
            What ``call`` has returned.

        """
        return await call()

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read, by way of :meth:`intercept`."""
        return await self.intercept("read", offset, length, lambda: self.inner.read(offset, length))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write, by way of :meth:`intercept`."""
        await self.intercept("write", offset, len(data), lambda: self.inner.write(offset, data))

    async def flush(self) -> None:
        """Flush, by way of :meth:`intercept`."""
        await self.intercept("flush", 0, 0, self.inner.flush)

    async def trim(self, offset: int, length: int) -> None:
        """Trim, by way of :meth:`intercept`."""
        await self.intercept("trim", offset, length, lambda: self.inner.trim(offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes, by way of :meth:`intercept`."""
        await self.intercept(
            "write_zeroes",
            offset,
            length,
            lambda: self.inner.write_zeroes(offset, length, may_trim=may_trim),
        )

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell extents, by way of :meth:`intercept`."""
        return await self.intercept(
            "extents", offset, length, lambda: self.inner.extents(offset, length)
        )

    async def cache(self, offset: int, length: int) -> None:
        """Pass the hint on, by way of :meth:`intercept`."""
        await self.intercept("cache", offset, length, lambda: self.inner.cache(offset, length))
