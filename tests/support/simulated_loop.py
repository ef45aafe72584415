"""Connections without sockets, and a loop that never waits: it tells what does.

What hangs on a socket would wait for a deadline. Here it is known at once: when nothing is due any
more, and the coroutine has not ended, it waits for what nobody will bring.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

from aiovblk.stream import StreamProtocol

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class StillLoop(asyncio.BaseEventLoop):
    """Runs what is due and nothing else; time stands still. Running while its block lasts."""

    _in_block = False

    def __init__(self) -> None:
        super().__init__()
        # There are no threads here that could call it, which the debug mode would find, and the
        # stack of each future, which it keeps, takes a third of the time.
        self.set_debug(False)
        self._due: deque[asyncio.Handle] = deque()
        self.errors: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._in_block = True
        events._set_running_loop(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        events._set_running_loop(None)
        self._in_block = False
        self.close()
        if exc is None:
            # An interrupt is the caller's, who has got it; that its task keeps it is no error.
            interrupts = KeyboardInterrupt, SystemExit
            errors = [e for e in self.errors if not isinstance(e.get("exception"), interrupts)]
            assert not errors, errors

    def turn(self) -> None:
        """Go on by one turn: run what is due now, and not what that makes due."""
        for _ in range(len(self._due)):
            handle = self._due.popleft()
            if not handle.cancelled():
                handle._run()

    def run_due(self) -> None:
        """Go on until everything waits."""
        while self._due:
            self.turn()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine until it waits, or has ended."""
        task = self.create_task(coroutine)
        self.run_due()
        return task

    def is_running(self) -> bool:
        return self._in_block

    def time(self) -> float:
        return 0.0

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._due.append(handle)
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)


class MemoryTransport(asyncio.Transport):
    """What a stream is connected with: the test is its peer.

    Args:
        stream: what is connected.
        stalled: whether the peer reads nothing of what is sent, until :meth:`read`.

    Attributes:
        sent: what the stream has sent.
        largest_buffer: bytes of the largest buffer that the stream has received into.

    """

    def __init__(self, stream: StreamProtocol, *, stalled: bool = False) -> None:
        super().__init__()
        self.sent = bytearray()
        self.largest_buffer = 0
        self._stream = stream
        self._stalled = stalled
        self._high = 64 * 1024
        self._unread = 0
        self._paused = False
        self._closing = False
        stream.connection_made(self)

    # The peer's side

    def deliver(self, data: bytes) -> bytes:
        """Send to the stream, as long as it receives; returns what it did not."""
        while data and not self._paused and not self._closing:
            with self._stream.get_buffer(-1) as room:
                count = min(len(room), len(data))
                room[:count] = data[:count]
            self.largest_buffer = max(self.largest_buffer, len(self._stream.reader.buffer))
            self._stream.buffer_updated(count)
            data = data[count:]
        return data

    def read(self) -> None:
        """Read all that was sent."""
        self._unread = 0
        if self._stream.write_paused:
            self._stream.resume_writing()

    def end(self) -> None:
        """Send no more, and go on reading."""
        self._stream.eof_received()

    def lose(self) -> None:
        """Break the connection."""
        if not self._closing:
            self._closing = True
            self._stream.connection_lost(None)

    # The stream's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        assert not self._closing
        for data in list_of_data:
            self.sent += data
            self._unread += len(data) if self._stalled else 0
        if self._unread > self._high and not self._stream.write_paused:
            self._stream.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._unread

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._high // 4, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = self._high if high is None else high

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self.lose()

    def abort(self) -> None:
        self.lose()


def converse_in_memory(
    loop: StillLoop, transport: MemoryTransport, task: asyncio.Task[Any], pieces: Iterable[bytes]
) -> None:
    """Send pieces to whoever runs in ``task``, one after the other, then break the connection."""
    for piece in pieces:
        left = piece
        while left and not task.done():
            before = len(left)
            left = transport.deliver(left)
            loop.run_due()
            assert len(left) < before or transport.is_closing(), "it does not receive any more"
            if transport.is_closing():
                break
    transport.lose()
    loop.run_due()
