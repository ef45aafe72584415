"""Requests to handlers, and handlers' results to replies.

What holds here:

* Exactly one reply per cookie, whatever its handler does; none for DISC.
* No payload after an error. A READ's payload has exactly the length that was asked for: both are
  decided before the first byte of the reply is written.
* Requests are taken off the socket while handlers wait. A socket that fills up would make every
  call into the kernel hang, the one that disconnects among them.
* What is in flight is what the client has in flight: a request counts until its reply is read,
  so neither buffered requests nor unsent replies outgrow the client's own limit (in the kernel,
  128 requests per connection: set->queue_depth in drivers/block/nbd.c). A client that need not
  limit itself is left waiting in its socket once it has taken its :class:`Share`.
* Replies that are ready together leave together.
* DISC does not close anything: the owner is told, and closes when nothing is in flight. Until then
  requests are answered, since the kernel goes on sending some.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import math
import socket
import sys
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic_ns

from ..device import BlockDevice
from ..events import RequestEvent, RequestFailed, SlowRequest
from ..protocol import (
    EXTENDED_REQUEST,
    REQUEST,
    SERIALIZERS,
    Agreement,
    Command,
    Content,
    Data,
    ReplyMode,
    Request,
    parse_extended_request,
    parse_request,
    wire_error,
)
from ..stream import StreamProtocol
from .budget import Share, cost
from .calls import Calls, describe
from .checks import Rules, kernel_agreement
from .running import Running
from .stats import Stats, command_name
from .turns import Turns

logger = logging.getLogger("aiovblk")

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_WRITE, _DISC = int(Command.WRITE), int(Command.DISC)


class Dispatcher:
    """Serves one device over one connection.

    Args:
        device: what is served. Its size is read once, here.
        stats: the counters; in flight are the requests of this connection alone.
        agreement: what was negotiated; by default what the kernel takes for granted.
        share: what requests may take of the server's memory; those beyond it are left in the
            socket. None for the kernel, which must never be kept waiting.
        turns: how many handlers may run at once; what all connections to one device share, whose
            handlers are counted together. By default its own.
        handler_timeout: seconds that one request's handler may take before it is cancelled and the
            request fails with EIO; None for no limit.
        slow_request: seconds after which a handler that still runs is told of; None for never.
        on_event: called with each :class:`SlowRequest` and :class:`RequestFailed`.
        on_disconnect: called when the client sends DISC; more than once if it does so again.

    Attributes:
        last_reply: when (in the loop's time) replies left last.

    """

    def __init__(
        self,
        device: BlockDevice,
        stats: Stats,
        *,
        agreement: Agreement | None = None,
        share: Share | None = None,
        turns: Turns | None = None,
        handler_timeout: float | None = None,
        slow_request: float | None = None,
        on_event: Callable[[RequestEvent], None] = lambda event: None,
        on_disconnect: Callable[[], None],
    ) -> None:
        agreement = agreement or kernel_agreement(device)
        self._on_event = on_event
        self._on_disconnect = on_disconnect
        self.stats = stats
        self._share = share
        self._turns = turns or Turns()
        self._rules = Rules(device, agreement)
        self._handle = Calls(device, agreement, handler_timeout).handle
        self._serialize = SERIALIZERS[agreement.mode]
        self._extended = agreement.mode is ReplyMode.EXTENDED
        self._parse = parse_extended_request if self._extended else parse_request
        self._header_size = EXTENDED_REQUEST.size if self._extended else REQUEST.size
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._running = Running(slow_request, self._tell_of_slow)
        self._abandoned = False
        self._given_up: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
        self._replies: list[Data] = []
        self._answered: list[Request] = []
        self._unsent = 0
        self._send_is_due = False
        self.last_reply = self._loop.time()
        self._when_idle: list[asyncio.Future[None]] = []

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Take over a connected Unix stream socket; :meth:`run` then serves it.

        Args:
            sock: the server's end.
            received: what another server has received on it and left, as :meth:`detach` tells.

        """
        stream = StreamProtocol()
        stream.reader.feed_data(received)
        await self._loop.create_unix_connection(lambda: stream, sock=sock)
        self.use(stream)

    def use(self, stream: StreamProtocol) -> None:
        """Take over a connection on which the transmission phase begins."""
        self._stream = stream
        self._reader = stream.reader
        if self._share is not None:
            stream.on_decongested = self._settle

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises:
            ProtocolError: the client does not speak NBD.
            OSError: the connection broke.
            asyncio.IncompleteReadError: it ended within a request.

        Cancellation: safe; call it again to go on.

        """
        wanted = self._header_size
        while await self._reader.fill(wanted):
            self._send_is_due = True
            try:
                wanted = self._accept_batch()
            finally:
                self._send()
            if self._share is not None:
                await self._share.room()

    async def resize(self, size: int) -> None:
        """Take requests up to this many bytes; those beyond are refused."""
        self._rules.size = size

    def drained(self) -> asyncio.Future[None]:
        """Done as soon as every request that has arrived is answered."""
        idle: asyncio.Future[None] = self._loop.create_future()
        if self.stats.in_flight:
            self._when_idle.append(idle)
        else:
            idle.set_result(None)
        return idle

    async def pause(self) -> None:
        """Take no request any more; returns once all that were taken are answered.

        :meth:`run` must have been cancelled before.
        """
        self._stream.transport.pause_reading()
        await self.drained()
        await self._stream.written()

    def resume(self) -> None:
        """Take requests again: :meth:`run` may go on."""
        self._stream.transport.resume_reading()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Let go of the socket, after :meth:`pause`; the client notices nothing.

        Returns:
            The socket, and what was received of requests that were not taken.

        """
        self._running.stop_watching()
        descriptor, received = self._stream.detach()
        return socket.socket(fileno=descriptor), received

    def close(self) -> asyncio.Future[Exception | None]:
        """Send what is queued, then close the connection; the result is done once it is closed."""
        self._running.stop_watching()
        self._send()
        self._stream.transport.close()
        return self._stream.closed

    def give_up(self, since: float = math.inf) -> None:
        """Fail with EIO what has been running since ``since`` (in the loop's time), and live on.

        Without ``since`` also what waits for its turn. Handlers are cancelled; one that takes no
        notice of that is waited for as before.
        """
        if since == math.inf:
            self._fail_waiting()
        for task, (start, _) in list(self._running.tasks.items()):
            if start <= since:
                self._given_up.add(task)
                task.cancel()

    def abort(self) -> None:
        """Give up: close the connection at once and cancel the handlers that still run."""
        self._abandoned = True
        self._running.stop_watching()
        self._stream.transport.abort()
        self._fail_waiting()
        for task in list(self._running.tasks):
            task.cancel()

    def _fail_waiting(self) -> None:
        for request in self._turns.withdraw(self):
            self._reply(request, errno.EIO)

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the handler began that has run longest; None if none runs."""
        return self._running.oldest_start

    # Requests

    def _accept_batch(self) -> int:
        """Start every request that has arrived whole.

        Returns:
            How many bytes the next one needs.

        """
        reader, share, header = self._reader, self._share, self._header_size
        buffer, end, now = memoryview(reader.buffer), reader.end, monotonic_ns()
        while end - (start := reader.start) >= header:
            if share is not None and share.full():
                break
            request = self._parse(buffer, start, now)
            length, payload = header, None
            if request.type == _WRITE or self._extended:
                length += request.payload_length(extended=self._extended)
                if end - start < length:
                    return length
            if request.type == _WRITE:
                payload = buffer[start + header : start + length]
            reader.start = start + length
            self._accept(request, payload)
        return header

    def _accept(self, request: Request, payload: memoryview | None) -> None:
        if request.type == _DISC:
            self._on_disconnect()
            return
        self.stats.in_flight += 1
        if self._share is not None:
            self._share.take(cost(request))
        if error := self._rules.refusal(request):
            self._reply(request, error)
        elif self._turns.free():
            self.start(request, payload)
        else:
            self._turns.queue(self, request, payload)

    def start(self, request: Request, payload: memoryview | None) -> None:
        """Run a request's handler, whose turn it is."""
        self._turns.running += 1
        task = self._spawn(request, payload)
        if not task.done():
            self._running.add(task, request)

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
            if self._running.tasks.pop(task, None) is not None:
                if self._abandoned:
                    _release(payload)
                    self._reply(request, errno.EIO)
                    self._turns.end()
                else:
                    self._turns.running -= 1
                    self.start(request, payload)

    # Handlers

    async def _serve(self, request: Request, payload: memoryview | None) -> None:
        """Run one request's handler and answer it: the one place where errors are judged."""
        error = errno.EIO
        content: Content = b""
        while True:
            try:
                content = await self._handle(request, payload)
                error = 0
            except asyncio.CancelledError:
                if self._cancelled_from_outside():
                    continue
            except OSError as exc:
                error = wire_error(exc.errno)
                logger.debug("%s failed: %r", describe(request), exc)
            except Exception:
                logger.exception("%s failed: a bug in its handler", describe(request))
            except (KeyboardInterrupt, SystemExit):
                self._finish(request, payload, errno.EIO, b"")
                raise
            break
        self._finish(request, payload, error, content)

    def _finish(
        self, request: Request, payload: memoryview | None, error: int, content: Content
    ) -> None:
        if self._running.tasks:
            self._running.tasks.pop(_current_task(), None)
        _release(payload)
        self._reply(request, error, content)
        self._turns.end()

    def _cancelled_from_outside(self) -> bool:
        """Whether this task, not its handler, was cancelled while the client still waits.

        The shutdown of an event loop cancels all tasks. The kernel knows nothing of that: it would
        take the failure of a write for the loss of its data.
        """
        task = _current_task()
        if not task.cancelling():
            logger.error("a handler raised CancelledError though nobody cancelled it")
            return False
        if self._abandoned or task in self._given_up:
            return False
        while task.uncancel():
            pass
        return True

    # Replies

    def _reply(self, request: Request, error: int, content: Content = b"") -> None:
        self._replies += self._serialize(request, error, content)
        self._answered.append(request)
        self.stats.in_flight -= 1
        self.stats.count(request, error)
        if error:
            self._on_event(RequestFailed(*_named(request), error))
        if self._share is not None:
            self._unsent += cost(request)
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        self.last_reply = self._loop.time()
        self._stream.send(self._replies)
        self._replies = []
        self.stats.sent(self._answered, monotonic_ns())
        self._answered.clear()
        if self._share is not None and not self._stream.congested:
            self._settle()
        while self._when_idle and not self.stats.in_flight:
            idle = self._when_idle.pop()
            if not idle.done():  # whoever waited may have been cancelled
                idle.set_result(None)

    def _tell_of_slow(self, request: Request, seconds: float) -> None:
        self._on_event(SlowRequest(*_named(request), seconds))

    def _settle(self) -> None:
        """Give back what replies took that have left, but for a bufferful."""
        assert self._share is not None  # only called where there is one
        self._share.give_back(self._unsent)
        self._unsent = 0


def _named(request: Request) -> tuple[str, int, int]:
    return command_name(request.type), request.offset, request.length


def _current_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None  # only called in a request's own task
    return task


def _release(payload: memoryview | None) -> None:
    """End the life of a payload, so that a handler which kept it finds out at once."""
    if payload is not None:
        # Where something exports it on (an array, say), the buffer below it stays as it is for as
        # long as that lives.
        try:  # noqa: SIM105 (contextlib.suppress costs ten times as much)
            payload.release()
        except BufferError:
            pass
