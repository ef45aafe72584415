"""A device that records the calls of its handlers."""

from __future__ import annotations

from collections.abc import Sequence

from aiovblk import BlockDevice, Extent


class Recorder(BlockDevice):
    """A device with all handlers that stores nothing, and reads as zeroes.

    Attributes:
        calls: the name of each handler that was called, and its arguments.

    """

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    async def read(self, offset: int, length: int) -> bytes:
        self.calls.append(("read", offset, length))
        return bytes(length)

    async def write(self, offset: int, data: memoryview) -> None:
        self.calls.append(("write", offset, bytes(data)))

    async def flush(self) -> None:
        self.calls.append(("flush",))

    async def trim(self, offset: int, length: int) -> None:
        self.calls.append(("trim", offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        self.calls.append(("write_zeroes", offset, length, may_trim))

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        self.calls.append(("extents", offset, length))
        return [Extent(length, hole=True, zero=True)]

    async def cache(self, offset: int, length: int) -> None:
        self.calls.append(("cache", offset, length))

    async def unmount(self) -> None:
        self.calls.append(("unmount",))
