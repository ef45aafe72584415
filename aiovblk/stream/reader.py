"""A StreamReader that receives in place: zero-copy, payloads are views of the receive buffer.

Invariants:

* The transport receives into ``buffer[end:]``; ``buffer[start:end]`` has not been consumed.
* A consumer may take a memoryview of what it consumed and pass it on. A buffer is never moved,
  refilled or resized while such a view is alive: receiving continues in another buffer, to which
  only the bytes not yet consumed are copied. :class:`BufferPool` knows whether there are views.
* The consumer never waits for bytes that have arrived.
* Memory follows what arrives, not what a peer announces: an idle connection has a small buffer, and
  the buffer for a large payload grows as it comes in.
* Backpressure: receiving pauses while the buffer is full and the consumer has not looked at it yet.
  Otherwise uvloop would receive up to 32 times before the consumer runs, each time into a larger
  buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, SupportsIndex, cast

from .buffers import BufferPool

BUFFER_SIZE = 1024 * 1024
"""Bytes of a full-size receive buffer: a few writes of the kernel's usual size, so that copying the
unfinished one to the next buffer is rare, and small enough to stay in a processor's cache."""

INITIAL_BUFFER_SIZE = 8 * 1024
"""Bytes of the first buffer, used until more arrives at once than fits into it. A handshake fits,
and so do the requests of a client that makes few; there may be a thousand of such clients."""

MIN_RECEIVE_ROOM = 64 * 1024
"""Bytes of room below which receiving continues in a new buffer: a system call for a few bytes
costs as much as one for many."""


class InPlaceStreamReader(asyncio.StreamReader):
    """An :class:`asyncio.StreamReader` that an :class:`asyncio.BufferedProtocol` fills in place.

    asyncio's own class copies each payload three times. This one adds :meth:`wait_for` and three
    attributes, with which a parser reads the received bytes where they lie, with one await per
    batch of requests.

    Concurrency: one consumer at a time.

    Attributes:
        buffer: the received bytes; may be another object after each :meth:`wait_for`.
        start: index of the first byte not consumed; the consumer advances it.
        end: index behind the last byte received.

    """

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(INITIAL_BUFFER_SIZE)
        self.start = 0
        self.end = 0
        self._usual_size = INITIAL_BUFFER_SIZE
        self._pool = BufferPool()
        self._wanted = 1
        self._paused = False
        self._transport: asyncio.ReadTransport | None = None
        self._ended = False
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None

    # The consumer's side

    async def wait_for(self, nbytes: int) -> bool:
        """Wait until ``nbytes`` bytes lie between :attr:`start` and :attr:`end`.

        Returns:
            False if the stream ended and no unconsumed byte is left; otherwise True.

        Raises:
            asyncio.IncompleteReadError: the stream ended with fewer bytes, but at least one.
            OSError: the connection broke.

        Cancellation: safe; no byte is lost.

        """
        self._wanted = nbytes
        while self.end - self.start < nbytes:
            if self._error is not None:
                raise self._error
            if self._ended:
                if self.end == self.start:
                    return False
                raise asyncio.IncompleteReadError(self._take(self.end - self.start), nbytes)
            self._arrival = asyncio.get_running_loop().create_future()
            if self._transport is not None and self._paused:
                self._paused = False
                self._transport.resume_reading()
            try:
                await self._arrival
            finally:
                self._arrival = None
        return True

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
        return self._ended and self.start == self.end

    def exception(self) -> Exception | None:
        """As in the base class."""
        return self._error

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self.buffer)[self.start : self.start + count])
        self.start += count
        return taken

    # The transport's side

    def receive_buffer(self) -> memoryview:
        """Return the room that the transport receives into, in place."""
        buffer, end = self.buffer, self.end
        unconsumed, room = end - self.start, len(buffer) - end
        if room < self._wanted - unconsumed or (
            room < MIN_RECEIVE_ROOM and room < len(buffer) // 2
        ):
            self._make_room(unconsumed, room)
            buffer, end = self.buffer, self.end
        return memoryview(buffer)[end:]

    def received(self, count: int) -> None:
        """Record that the transport has received ``count`` bytes into :meth:`receive_buffer`."""
        self.end += count
        room = len(self.buffer) - self.end
        if not room:
            self._usual_size = BUFFER_SIZE
        # A small buffer is never full: the next one is larger.
        full = room < MIN_RECEIVE_ROOM and len(self.buffer) >= BUFFER_SIZE
        if self._wake() and full and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """As in the base class: the transport to pause and resume."""
        # A stream's transport can read; that of uvloop is no subclass of asyncio.ReadTransport.
        self._transport = cast(asyncio.ReadTransport, transport)

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """As in the base class: copy bytes that were received elsewhere."""
        remaining = memoryview(bytes(data))
        while remaining:
            with self.receive_buffer() as room:
                count = min(len(room), len(remaining))
                room[:count] = remaining[:count]
            self.received(count)
            remaining = remaining[count:]

    def feed_eof(self) -> None:
        """As in the base class."""
        self._ended = True
        self._wake()

    def set_exception(self, exc: Exception) -> None:
        """As in the base class."""
        self._error = exc
        self._wake()

    def release(self) -> None:
        """Free the buffers, with all bytes not consumed; for a connection that is closed.

        They may hold 32 MiB, and would otherwise live until the garbage collector frees the
        connection's objects.
        """
        self.buffer = bytearray()
        self.start = self.end = 0
        self._pool = BufferPool()
        self._ended = True

    def _make_room(self, unconsumed: int, room: int) -> None:
        size = self._next_size(unconsumed)
        if room >= MIN_RECEIVE_ROOM and self.start == 0 and len(self.buffer) >= size:
            return  # a part of a large payload; there will be room for the rest as this fills up
        old, self.buffer = self.buffer, self._pool.swap(self.buffer, size)
        # `old` may be the new buffer itself, if it has no views: the two slices may overlap.
        memoryview(self.buffer)[:unconsumed] = memoryview(old)[self.start : self.end]
        self.start, self.end = 0, unconsumed

    def _next_size(self, unconsumed: int) -> int:
        if max(self._wanted, 2 * unconsumed) > self._usual_size:
            self._usual_size = BUFFER_SIZE
        size = self._usual_size
        if size == BUFFER_SIZE:
            # With room behind what is wanted, or its last bytes would have it all copied once more.
            # But a header of 28 bytes can announce 32 MiB that never come.
            credible = max(2 * BUFFER_SIZE, 4 * unconsumed)
            size = max(size, min(self._wanted + MIN_RECEIVE_ROOM, credible))
        if unconsumed >= self._wanted:
            size = max(size, 2 * unconsumed)
        return size

    def _wake(self) -> bool:
        # A parser that waits for a whole payload is not woken for each part of it.
        enough = self.end - self.start >= self._wanted or self._ended or self._error is not None
        if enough and self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        return enough
