"""The receive buffer of a connection: filled in place, and consumed in the same callback.

Invariants:

* The transport receives into ``buffer[end:]``; ``buffer[start:end]`` has not been consumed.
* A consumer may take a memoryview of what it consumed and pass it on. A buffer is never moved,
  refilled or resized while such a view is alive: receiving continues in another buffer, to which
  only the bytes not yet consumed are copied. :class:`BufferPool` knows whether there are views.
* The consumer never waits for bytes that have arrived: what :meth:`ReceiveBuffer.consume` is given
  is called in the callback that received them, and a coroutine that reads is woken by them.
* Memory follows what arrives, not what a peer announces: an idle connection has a small buffer, and
  the buffer for a large payload grows as it comes in.
* Backpressure: receiving pauses while the buffer is full and the consumer has not looked at it yet.
  Otherwise uvloop would receive up to 32 times before the consumer runs, each time into a larger
  buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from .buffers import BufferPool, is_viewed

BUFFER_SIZE = 1024 * 1024
"""Bytes of a full-size receive buffer: a few writes of the kernel's usual size, so that copying the
unfinished one to the next buffer is rare, and small enough to stay in a processor's cache."""

INITIAL_BUFFER_SIZE = 8 * 1024
"""Bytes of the first buffer, used until more arrives at once than fits into it. A handshake fits,
and so do the requests of a client that makes few; there may be a thousand of such clients."""

MIN_RECEIVE_ROOM = 64 * 1024
"""Bytes of room below which receiving continues in a new buffer: a system call for a few bytes
costs as much as one for many."""


class ReceiveBuffer:
    """Received bytes that are consumed where they lie, with one await for a whole connection.

    Concurrency: one consumer at a time.

    Attributes:
        buffer: the received bytes; may be another object whenever the transport has received.
        view: a view of that buffer, slices of which are payloads. It is replaced with the buffer:
            take a slice of it at once, and keep only that.
        start: index of the first byte not consumed; the consumer advances it.
        end: index behind the last byte received.
        wanted: how many bytes the consumer needs to go on.
        filled: whether the last bytes received filled the buffer: there may be more at once.
        consuming: whether :meth:`consume` runs.
        ended: whether no more bytes will arrive.

    """

    def __init__(self) -> None:
        self.buffer = bytearray(INITIAL_BUFFER_SIZE)
        self.view = memoryview(self.buffer)
        self.start = 0
        self.end = 0
        self.wanted = 1
        self.filled = False
        self.consuming = False
        self._consumer: Callable[[], bool] = lambda: True
        self._consumed: asyncio.Future[bool]
        self._usual_size = INITIAL_BUFFER_SIZE
        self._pool = BufferPool()
        self._paused = False
        self._transport: asyncio.ReadTransport | None = None
        self.ended = False
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None

    async def consume(self, consumer: Callable[[], bool]) -> bool:
        """Let ``consumer`` consume the bytes as they arrive, until it stops or the stream ends.

        It is called whenever :attr:`wanted` bytes are there: now, and then in the transport's
        callback, without a turn of the event loop. It consumes all it can, sets :attr:`wanted` to
        what it needs next, and returns True; or it returns False to stop.

        Returns:
            True if the consumer has stopped; False if the stream has ended, all of it consumed.

        Raises:
            asyncio.IncompleteReadError: the stream ended with fewer bytes than wanted.
            OSError: the connection broke.
            BaseException: what the consumer raised.

        Cancellation: safe; no byte is lost.

        """
        self._consumer, self.consuming = consumer, True
        self._consumed = asyncio.get_running_loop().create_future()
        try:
            self._consume()
            self._resume_receiving()
            return await self._consumed
        finally:
            self.consuming = False

    def _consume(self) -> None:
        """Call the consumer if it can go on; end :meth:`consume` if it never will."""
        if self._consumed.done():  # cancelled
            return
        try:
            if self.end - self.start >= self.wanted and not self._consumer():
                self.end_consuming(True)
            elif (self.ended or self._error is not None) and self.consuming:
                if self._error is not None:
                    raise self._error
                if self.end != self.start:
                    rest = self._take(self.end - self.start)
                    raise asyncio.IncompleteReadError(rest, self.wanted)
                self.end_consuming(False)
        except BaseException as exc:
            self.consuming = False
            if self._consumed.done():
                raise
            # Not raised here: uvloop would close the connection, and not raise a KeyboardInterrupt.
            self._consumed.set_exception(exc)

    def end_consuming(self, stopped: bool) -> None:
        """End :meth:`consume` with this result; no-op if it has ended."""
        self.consuming = False
        if not self._consumed.done():  # it may have been cancelled
            self._consumed.set_result(stopped)

    def _resume_receiving(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _take(self, count: int) -> bytes:
        taken = bytes(self.view[self.start : self.start + count])
        self.start += count
        return taken

    # The transport's side

    def receive_buffer(self) -> memoryview:
        """Return the room that the transport receives into, in place."""
        buffer, end = self.buffer, self.end
        unconsumed, room = end - self.start, len(buffer) - end
        if not unconsumed and end >= MIN_RECEIVE_ROOM and self._rewind():
            end = 0
        elif room < self.wanted - unconsumed or (
            room < MIN_RECEIVE_ROOM and room < len(buffer) // 2
        ):
            self._make_room(unconsumed, room)
            end = self.end
        return self.view[end:]

    def received(self, count: int) -> None:
        """Record that the transport has received ``count`` bytes into :meth:`receive_buffer`."""
        self.end += count
        room = len(self.buffer) - self.end
        self.filled = not room
        if self.filled:
            self._usual_size = BUFFER_SIZE
        if self.consuming:
            if self.end - self.start >= self.wanted:
                self._consume()
            return
        # A small buffer is never full: the next one is larger.
        full = room < MIN_RECEIVE_ROOM and len(self.buffer) >= BUFFER_SIZE
        if self._wake() and full and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """As in the base class: the transport to pause and resume."""
        # A stream's transport can read; that of uvloop is no subclass of asyncio.ReadTransport.
        self._transport = cast(asyncio.ReadTransport, transport)

    def feed_eof(self) -> None:
        """As in the base class."""
        self.ended = True
        self._wake()

    def set_exception(self, exc: Exception) -> None:
        """As in the base class."""
        self._error = exc
        if self.consuming:  # what has arrived was consumed, or will not be
            self.consuming = False
            if not self._consumed.done():
                self._consumed.set_exception(exc)
        self._wake()

    def release(self) -> None:
        """Free the buffers, with all bytes not consumed; for a connection that is closed.

        They may hold 32 MiB, and would otherwise live until the garbage collector frees the
        connection's objects.
        """
        self.view.release()
        self.buffer = bytearray()
        self.view = memoryview(self.buffer)
        self.start = self.end = 0
        self._pool = BufferPool()
        self.ended = True

    def _rewind(self) -> bool:
        """Start at the buffer's beginning, which is in the processor's cache; False if in use."""
        self.view.release()
        is_free = len(self.buffer) <= BUFFER_SIZE and not is_viewed(self.buffer)
        self.view = memoryview(self.buffer)
        if is_free:
            self.start = self.end = 0
        return is_free

    def _make_room(self, unconsumed: int, room: int) -> None:
        size = self._next_size(unconsumed)
        if room >= MIN_RECEIVE_ROOM and self.start == 0 and len(self.buffer) >= size:
            return  # a part of a large payload; there will be room for the rest as this fills up
        self.view.release()  # or the pool would take the buffer for one in use
        old, self.buffer = self.buffer, self._pool.swap(self.buffer, size)
        self.view = memoryview(self.buffer)
        # `old` may be the new buffer itself, if it has no views: the two slices may overlap.
        self.view[:unconsumed] = memoryview(old)[self.start : self.end]
        self.start, self.end = 0, unconsumed

    def _next_size(self, unconsumed: int) -> int:
        if max(self.wanted, 2 * unconsumed) > self._usual_size:
            self._usual_size = BUFFER_SIZE
        size = self._usual_size
        if size == BUFFER_SIZE:
            # With room behind what is wanted, or its last bytes would have it all copied once more.
            # But a header of 28 bytes can announce 32 MiB that never come.
            credible = max(2 * BUFFER_SIZE, 4 * unconsumed)
            size = max(size, min(self.wanted + MIN_RECEIVE_ROOM, credible))
        if unconsumed >= self.wanted:
            size = max(size, 2 * unconsumed)
        return size

    def _wake(self) -> bool:
        # A parser that waits for a whole payload is not woken for each part of it.
        enough = self.end - self.start >= self.wanted or self.ended or self._error is not None
        if self.consuming:
            self._consume()
        elif enough and self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        return enough
