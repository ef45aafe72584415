"""A StreamReader that receives in place: zero-copy, payloads are views of the receive buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, SupportsIndex

from .receive_buffer import BUFFER_SIZE, ReceiveBuffer


class InPlaceStreamReader(ReceiveBuffer, asyncio.StreamReader):
    """An :class:`asyncio.StreamReader` that an :class:`asyncio.BufferedProtocol` fills in place.

    asyncio's own class copies each payload three times. This one adds what a :class:`ReceiveBuffer`
    has, with which a parser reads the received bytes where they lie, and two ways to wait for them:
    with one await for each batch (:meth:`wait_for`), or with one for the whole connection
    (:meth:`~ReceiveBuffer.consume`).

    Concurrency: one consumer at a time.

    """

    def __init__(self) -> None:
        asyncio.StreamReader.__init__(self)
        ReceiveBuffer.__init__(self)

    async def wait_for(self, nbytes: int) -> bool:
        """Wait until ``nbytes`` bytes lie between :attr:`start` and :attr:`end`.

        Returns:
            False if the stream ended and no unconsumed byte is left; otherwise True.

        Raises:
            asyncio.IncompleteReadError: the stream ended with fewer bytes, but at least one.
            OSError: the connection broke.

        Cancellation: safe; no byte is lost.

        """
        self.wanted = nbytes
        while self.end - self.start < nbytes:
            if self._error is not None:
                raise self._error
            if self.ended:
                if self.end == self.start:
                    return False
                raise asyncio.IncompleteReadError(self._take(self.end - self.start), nbytes)
            self._arrival = asyncio.get_running_loop().create_future()
            self._resume_receiving()
            try:
                await self._arrival
            finally:
                self._arrival = None
        return True

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """As in the base class: copy bytes that were received elsewhere."""
        remaining = memoryview(bytes(data))
        while remaining:
            with self.receive_buffer() as room:
                count = min(len(room), len(remaining))
                room[:count] = remaining[:count]
            self.received(count)
            remaining = remaining[count:]

    async def readexactly(self, n: int) -> bytes:
        """As in the base class."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if n and not await self.wait_for(n):
            raise asyncio.IncompleteReadError(b"", n)
        return self._take(n)

    async def read(self, n: int = -1) -> bytes:
        """As in the base class."""
        if n < 0:
            pieces = []
            while piece := await self.read(BUFFER_SIZE):
                pieces.append(piece)
            return b"".join(pieces)
        if n == 0 or not await self.wait_for(1):
            return b""
        return self._take(min(n, self.end - self.start))

    async def readuntil(self, separator: Any = b"\n") -> bytes:  # its type varies by version
        """As in the base class, but without a limit: the buffer grows up to the separator."""
        separators = separator if isinstance(separator, tuple) else (bytes(separator),)
        if not all(separators):
            raise ValueError("Separator should be at least one-byte string")
        wanted = 1
        while True:
            try:
                some = await self.wait_for(wanted)
            except asyncio.IncompleteReadError as exc:
                raise asyncio.IncompleteReadError(exc.partial, None) from None
            if not some:
                raise asyncio.IncompleteReadError(b"", None)
            found = [
                at + len(each)
                for each in separators
                if (at := self.buffer.find(each, self.start, self.end)) >= 0
            ]
            if found:
                return self._take(min(found) - self.start)
            wanted = self.end - self.start + 1

    def at_eof(self) -> bool:
        """As in the base class."""
        return self.ended and self.start == self.end

    def exception(self) -> Exception | None:
        """As in the base class."""
        return self._error
