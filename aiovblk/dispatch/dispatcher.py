"""Requests to handlers, and handlers' results to replies.

What holds here:

* Exactly one reply per cookie, whatever its handler does; none for DISC.
* No payload after an error. A READ's payload has exactly the length that was asked for: both are
  decided before the first byte of the reply is written.
* Requests are taken off the socket while handlers wait. A socket that fills up would make every
  call into the kernel hang, the one that disconnects among them.
* What is in flight is what the client has in flight: a request counts until its reply is read,
  so neither buffered requests nor unsent replies outgrow the client's own limit (in the kernel,
  128 requests per connection: set->queue_depth in drivers/block/nbd.c).
* Replies that are ready together leave together.
* DISC does not close anything: the owner is told, and closes when nothing is in flight. Until then
  requests are answered, since the kernel goes on sending some.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable
from functools import partial

from ..device import BlockDevice
from ..protocol import (
    REQUEST,
    Command,
    CommandFlag,
    Request,
    parse_request,
    serialize_simple_reply,
    wire_error,
)
from ..stream import StreamProtocol
from .checks import refusal
from .stats import Stats

logger = logging.getLogger("aiovblk")

MAX_CONCURRENCY = 128
"""Handlers at once: as many requests as the kernel has in flight on one connection."""

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_FLUSH, _TRIM, _WRITE_ZEROES = int(Command.FLUSH), int(Command.TRIM), int(Command.WRITE_ZEROES)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)


class Dispatcher:
    """Serves one device over one connection.

    Args:
        device: what is served. Its size is read once, here.
        stats: what is counted.
        concurrency: how many handlers may run at once; further requests wait their turn.
        handler_timeout: seconds that one request's handler may take before it is cancelled and the
            request fails with EIO; None for no limit.
        on_disconnect: called when the client sends DISC; more than once if it does so again.

    Attributes:
        size: bytes; requests that reach beyond it are refused.

    """

    def __init__(
        self,
        device: BlockDevice,
        stats: Stats,
        *,
        concurrency: int = MAX_CONCURRENCY,
        handler_timeout: float | None = None,
        on_disconnect: Callable[[], None],
    ) -> None:
        self.size = device.size
        self._on_disconnect = on_disconnect
        self._device = device
        self._stats = stats
        self._concurrency = concurrency
        self._handler_timeout = handler_timeout
        self._handle = self._call if handler_timeout is None else self._call_in_time
        self._read_only = device.read_only
        self._block_mask = device.block_size - 1
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._waiting: deque[tuple[Request, memoryview | None]] = deque()
        self._starting = False
        self._running = 0
        self._tasks: dict[asyncio.Task[None], float] = {}
        self._abandoned = False
        self._replies: list[bytes | memoryview] = []
        self._send_is_due = False
        self._last_reply = self._loop.time()
        self._when_idle: list[asyncio.Future[None]] = []

    async def connect(self, sock: socket.socket) -> None:
        """Take over a connected Unix stream socket; :meth:`run` then serves it."""
        self._transport, self._protocol = await self._loop.create_unix_connection(
            StreamProtocol, sock=sock
        )
        self._reader = self._protocol.reader

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises:
            ProtocolError: the client does not speak NBD.
            OSError: the connection broke.
            asyncio.IncompleteReadError: it ended within a request.

        Cancellation: safe; call it again to go on.

        """
        wanted = REQUEST.size
        while await self._reader.fill(wanted):
            self._send_is_due = True
            try:
                wanted = self._accept_batch()
            finally:
                self._send()

    def drained(self) -> asyncio.Future[None]:
        """Done as soon as every request that has arrived is answered."""
        idle: asyncio.Future[None] = self._loop.create_future()
        if self._stats.in_flight:
            self._when_idle.append(idle)
        else:
            idle.set_result(None)
        return idle

    def close(self) -> asyncio.Future[Exception | None]:
        """Send what is queued, then close the connection; the result is done once it is closed."""
        self._send()
        self._transport.close()
        return self._protocol.closed

    def abort(self) -> None:
        """Give up: close the connection at once and cancel the handlers that still run."""
        self._abandoned = True
        self._transport.abort()
        while self._waiting:
            self._reply(self._waiting.popleft()[0], errno.EIO)
        for task in list(self._tasks):
            task.cancel()

    def waited_since(self) -> float:
        """Since when (in the loop's time) the client has been waiting for a sign of life.

        That is when the handler that has run longest began; or when the last reply was sent, if
        none is running.
        """
        return next(iter(self._tasks.values()), self._last_reply)

    # Requests

    def _accept_batch(self) -> int:
        """Start every request that has arrived whole.

        Returns:
            How many bytes the next one needs.

        """
        reader = self._reader
        buffer, end = reader.buffer, reader.end
        while end - (start := reader.start) >= REQUEST.size:
            request = parse_request(buffer, start)
            length = REQUEST.size + request.payload_length()
            if end - start < length:
                return length
            reader.start = start + length
            payload = None
            if request.type == _WRITE:
                payload = memoryview(buffer)[start + REQUEST.size : start + length]
            self._accept(request, payload)
        return REQUEST.size

    def _accept(self, request: Request, payload: memoryview | None) -> None:
        if request.type == _DISC:
            self._on_disconnect()
            return
        self._stats.in_flight += 1
        if error := refusal(request, self.size, self._block_mask, self._read_only):
            self._reply(request, error)
        elif self._running < self._concurrency and not self._waiting:
            self._start(request, payload)
        else:
            self._waiting.append((request, payload))

    def _start(self, request: Request, payload: memoryview | None) -> None:
        self._running += 1
        task = self._spawn(request, payload)
        if not task.done():
            self._tasks[task] = self._loop.time()

    if sys.version_info >= (3, 12):

        def _spawn(self, request: Request, payload: memoryview | None) -> asyncio.Task[None]:
            # Eager: a handler that needs not wait is done when this returns, at no turn of the
            # loop. Each request has a context of its own, as each task has.
            return asyncio.Task(
                self._serve(request, payload),
                loop=self._loop,
                context=self._context.copy(),
                eager_start=True,
            )

    else:

        def _spawn(self, request: Request, payload: memoryview | None) -> asyncio.Task[None]:
            task: asyncio.Task[None] = self._loop.create_task(
                self._serve(request, payload), context=self._context.copy()
            )
            task.add_done_callback(partial(self._respawn_unless_begun, request, payload))
            return task

        def _respawn_unless_begun(
            self, request: Request, payload: memoryview | None, task: asyncio.Task[None]
        ) -> None:
            # A task that is cancelled before its first step never runs a line of its coroutine,
            # and so has not answered.
            if self._tasks.pop(task, None) is not None:
                self._running -= 1
                if self._abandoned:
                    self._reply(request, errno.EIO)
                else:
                    self._start(request, payload)

    def _start_waiting(self) -> None:
        # Not re-entered: a handler that is done at once comes here again from _start.
        if self._starting:
            return
        self._starting = True
        try:
            while self._waiting and self._running < self._concurrency:
                self._start(*self._waiting.popleft())
        finally:
            self._starting = False

    # Handlers

    async def _serve(self, request: Request, payload: memoryview | None) -> None:
        """Run one request's handler and answer it: the one place where errors are judged."""
        error = errno.EIO
        data: bytes | memoryview = b""
        while True:
            try:
                data = await self._handle(request, payload)
                error = 0
            except asyncio.CancelledError:
                if self._cancelled_from_outside():
                    continue
            except OSError as exc:
                error = wire_error(exc.errno)
                logger.debug("%s failed: %r", _describe(request), exc)
            except Exception:
                logger.exception("%s failed: a bug in its handler", _describe(request))
            except (KeyboardInterrupt, SystemExit):
                self._finish(request, payload, errno.EIO, b"")
                raise
            break
        self._finish(request, payload, error, data)

    def _finish(
        self, request: Request, payload: memoryview | None, error: int, data: bytes | memoryview
    ) -> None:
        if self._tasks:
            self._tasks.pop(_current_task(), None)
        self._running -= 1
        _release(payload)
        self._reply(request, error, data)
        if self._waiting:
            self._start_waiting()

    async def _call(self, request: Request, payload: memoryview | None) -> bytes | memoryview:
        flags, command, _, offset, length = request
        if command == _READ:
            return _as_payload(await self._device.read(offset, length), length)
        if command == _WRITE:
            assert payload is not None  # each WRITE was given one when it was parsed
            await self._device.write(offset, payload)
        elif command == _TRIM:
            await self._device.trim(offset, length)
        elif command == _WRITE_ZEROES:
            await self._device.write_zeroes(offset, length, may_trim=not flags & _NO_HOLE)
        if command == _FLUSH or flags & _FUA:
            # "FUA: the server MUST NOT send a reply until the data has reached stable storage."
            await self._device.flush()
        return b""

    async def _call_in_time(
        self, request: Request, payload: memoryview | None
    ) -> bytes | memoryview:
        limit = asyncio.timeout(self._handler_timeout)
        try:
            async with limit:
                return await self._call(request, payload)
        except TimeoutError:
            if limit.expired():
                seconds = self._handler_timeout
                logger.warning("%s failed: not done in %s s", _describe(request), seconds)
            raise

    def _cancelled_from_outside(self) -> bool:
        """Whether this task, not its handler, was cancelled while the client still waits.

        The shutdown of an event loop cancels all tasks. The kernel knows nothing of that: it would
        take the failure of a write for the loss of its data.
        """
        task = _current_task()
        if not task.cancelling():
            logger.error("a handler raised CancelledError though nobody cancelled it")
            return False
        if self._abandoned:
            return False
        while task.uncancel():
            pass
        return True

    # Replies

    def _reply(self, request: Request, error: int, data: bytes | memoryview = b"") -> None:
        replies, stats = self._replies, self._stats
        replies.append(serialize_simple_reply(error, request.cookie))
        if data:
            replies.append(data)
        stats.in_flight -= 1
        self._count(request, error)
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _count(self, request: Request, error: int) -> None:
        stats, command = self._stats, request.type
        if error:
            stats.errors += 1
        elif command == _READ:
            stats.reads += 1
            stats.bytes_read += request.length
        elif command == _WRITE:
            stats.writes += 1
            stats.bytes_written += request.length
        elif command == _FLUSH:
            stats.flushes += 1
        elif command == _TRIM:
            stats.trims += 1
        else:
            stats.write_zeroes += 1

    def _send(self) -> None:
        self._send_is_due = False
        self._last_reply = self._loop.time()
        if self._replies and not self._transport.is_closing():
            self._transport.writelines(self._replies)
        self._replies = []
        while self._when_idle and not self._stats.in_flight:
            idle = self._when_idle.pop()
            if not idle.done():  # whoever waited may have been cancelled
                idle.set_result(None)


def _current_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None  # only called in a request's own task
    return task


def _as_payload(data: bytes | bytearray | memoryview, length: int) -> bytes | memoryview:
    """A READ's result in a form that stays as it is while it waits to be sent."""
    if type(data) is not bytes:
        view = memoryview(data).cast("B")
        data = view if view.readonly else bytes(view)
    if len(data) != length:
        raise ValueError(f"read returned {len(data)} bytes where {length} were asked for")
    return data


def _release(payload: memoryview | None) -> None:
    """End the life of a payload, so that a handler which kept it finds out at once."""
    if payload is not None:
        # Where something exports it on (an array, say), the buffer below it stays as it is for as
        # long as that lives.
        with contextlib.suppress(BufferError):
            payload.release()


def _describe(request: Request) -> str:
    try:
        name = Command(request.type).name
    except ValueError:
        name = f"command {request.type}"
    return f"{name} at {request.offset}, {request.length} bytes,"
