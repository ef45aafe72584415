"""A device whose handlers return when the test releases them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiovblk import BlockDevice
from aiovblk.device import Extent


class Slow(BlockDevice):
    """A disk whose handlers wait for :meth:`release`; block N is filled with N modulo 251.

    Requests take effect when they are called; only their return is delayed.

    Attributes:
        held: the kinds of requests that wait for :meth:`release`.
        asked: all requests: their kind, and offset and length of those that have them.
        errors: by kind, the exception that requests fail with.
        content: the data.
        waiting: the requests that wait, oldest first.

    """

    def __init__(self, blocks: int, *, block_size: int = 512, held: Sequence[str] = ()) -> None:
        self.block_size = block_size
        self.blocks = blocks
        self.content = bytearray(
            b"".join(bytes([block % 251]) * block_size for block in range(blocks))
        )
        self.held = set(held)
        self.asked: list[tuple[str, int, int] | tuple[str]] = []
        self.errors: dict[str, Exception] = {}
        self.waiting: list[asyncio.Future[None]] = []

    def take(self) -> list[tuple[str, int, int] | tuple[str]]:
        """Return the requests since the last call of this method."""
        asked, self.asked = self.asked, []
        return asked

    async def release(self, *, most: int | None = None) -> None:
        """Let (at most ``most``) waiting requests return, and run the loop until it is idle."""
        await settle()
        waiting, self.waiting = self.waiting[:most], self.waiting[len(self.waiting[:most]) :]
        for answer in waiting:
            if not answer.done():
                answer.set_result(None)
        await settle()

    async def read(self, offset: int, length: int) -> bytes:
        self.asked.append(("read", offset, length))
        data = bytes(self.content[offset : offset + length])
        await self._answer("read")
        return data

    async def write(self, offset: int, data: memoryview) -> None:
        self.asked.append(("write", offset, len(data)))
        if "write" not in self.errors:
            self.content[offset : offset + len(data)] = data
        await self._answer("write")

    async def flush(self) -> None:
        self.asked.append(("flush",))
        await self._answer("flush")

    async def trim(self, offset: int, length: int) -> None:
        self.asked.append(("trim", offset, length))
        await self._answer("trim")

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        self.asked.append(("write_zeroes", offset, length))
        if "write_zeroes" not in self.errors:
            self.content[offset : offset + length] = bytes(length)
        await self._answer("write_zeroes")

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        self.asked.append(("extents", offset, length))
        await self._answer("extents")
        return [Extent(length, hole=True, zero=True)]

    async def unmount(self) -> None:
        self.asked.append(("unmount",))
        await self._answer("unmount")

    async def _answer(self, kind: str) -> None:
        if kind in self.held:
            answer = asyncio.get_running_loop().create_future()
            self.waiting.append(answer)
            await answer
        if kind in self.errors:
            raise self.errors[kind]


async def settle() -> None:
    """Run the event loop until tasks that can run have done so."""
    for _ in range(20):
        await asyncio.sleep(0)
