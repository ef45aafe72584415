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
* No connection keeps the event loop for longer than a slice: what has arrived is taken in batches,
  between which others have their turn.
* Replies that are ready together leave together.
* DISC does not close anything: the owner is told, and closes when nothing is in flight. Until then
  requests are answered, since the kernel goes on sending some.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
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
)
from ..stream import CHECK_INTERVAL, SLICE, Slice, StreamProtocol
from .budget import Share, cost
from .calls import Calls
from .checks import Rules, kernel_agreement
from .failures import Failures, Reporter
from .handlers import Handlers
from .stats import Stats, command_name
from .turns import Turns

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_WRITE, _DISC = int(Command.WRITE), int(Command.DISC)

_NO_LIMIT = sys.maxsize

REFUSALS = {
    errno.EPERM: "refused: the device is read-only",
    errno.ENOSPC: "refused: it is beyond the end",
    errno.EINVAL: "refused: not aligned, beyond the end, or nothing that was agreed upon",
}
"""Why a request fails that reaches no handler."""

BATCH = 128
"""Requests that are taken at once: as many as the kernel has in flight on one connection."""

UNCOUNTED = 64 * 1024
"""Bytes of a request up to which it may be received before memory is reserved for it: they fit into
the buffer that each connection has."""


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
        reporter: tells in the log why requests fail; connections that share its causes tell each
            of them once. By default its own.
        on_event: called with each :class:`SlowRequest` and :class:`RequestFailed`.
        on_disconnect: called when the client sends DISC; more than once if it does so again.
        on_unfinished: called when the rest of a request is to be received, where there is a share.

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
        reporter: Reporter | None = None,
        on_event: Callable[[RequestEvent], None] = lambda event: None,
        on_disconnect: Callable[[], None],
        on_unfinished: Callable[[], None] = lambda: None,
    ) -> None:
        agreement = agreement or kernel_agreement(device)
        self._on_event = on_event
        self._on_disconnect = on_disconnect
        self._on_unfinished = on_unfinished
        self.stats = stats
        self._share = share
        self._price = 0  # of the next request, where it is known and has to be reserved
        self._batches = 0
        self._is_unfinished = False
        self._slice = Slice()
        self._rules = Rules(device, agreement)
        self._own_failures: Failures | None = None
        if reporter is None:
            self._own_failures = Failures()
            reporter = Reporter(self._own_failures, device)
        self._handlers = Handlers(
            Calls(device, agreement, handler_timeout).handle,
            self._reply,
            reporter,
            turns or Turns(),
            self._slice,
            slow_request=slow_request,
            on_slow=self._tell_of_slow,
        )
        self._serialize = SERIALIZERS[agreement.mode]
        self._extended = agreement.mode is ReplyMode.EXTENDED
        self._parse = parse_extended_request if self._extended else parse_request
        self._header_size = EXTENDED_REQUEST.size if self._extended else REQUEST.size
        self._loop = asyncio.get_running_loop()
        self._replies: list[Data] = []
        self._succeeded: list[Request] = []
        self._failed: list[Request] = []
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
        wanted, reader = self._header_size, self._reader
        while await reader.fill(wanted):
            self._send_is_due = True
            try:
                wanted = self._accept_batch()
            finally:
                self._send()
            if self._share is not None:
                await self._before_the_next(self._share, wanted)
            if reader.end - reader.start >= wanted:  # there is more than a batch
                await self._slice.next()

    async def _before_the_next(self, share: Share, wanted: int) -> None:
        """Reserve what the next request takes, before the rest of it is received."""
        self._batches += 1
        self._is_unfinished = False
        if self._price:
            await share.reserve(self._price)
        if wanted > self._header_size and self._reader.end - self._reader.start < wanted:
            self._is_unfinished = True
            self._on_unfinished()

    def unfinished(self) -> tuple[int, int] | None:
        """The request of which a part has been received: a number, and how many bytes are here.

        None where there is none, or where it is not for the client to go on.
        """
        if not self._is_unfinished:
            return None
        return self._batches, self._reader.end - self._reader.start

    @property
    def idle_since(self) -> float | None:
        """When (in the loop's time) the last reply left, if nothing is asked for since; or None."""
        # What has arrived may wait, for memory or for a slice, or for the rest of it.
        waits = self._reader.end - self._reader.start >= self._header_size
        return None if self.stats.in_flight or waits else self.last_reply

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

    def forgotten(self) -> int:
        """How many requests are in flight of which no handler is at work, and waits for something.

        Where that stays the same, an interrupt (KeyboardInterrupt) has hit whoever was to answer.
        """
        handlers = self._handlers
        is_served = handlers.any_running() or handlers.wait_for_slice()
        return 0 if is_served else self.stats.in_flight

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
        self._stop_watching()
        descriptor, received = self._stream.detach()
        return socket.socket(fileno=descriptor), received

    def retire(self) -> None:
        """Let the client send no more; :meth:`run` takes what it has sent, and returns."""
        transport = self._stream.transport
        if not transport.is_closing():
            # By a duplicate: uvloop's own socket cannot be shut down.
            descriptor = os.dup(transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=descriptor) as sock, suppress(OSError):
                sock.shutdown(socket.SHUT_RD)

    def close(self) -> asyncio.Future[Exception | None]:
        """Send what is queued, then close the connection; the result is done once it is closed."""
        self._stop_watching()
        self._send()
        self._stream.transport.close()
        return self._stream.closed

    def give_up(self, since: float = math.inf) -> None:
        """Fail with EIO what has been running since ``since`` (in the loop's time), and live on.

        Without ``since`` also what waits for its turn. Handlers are cancelled; one that takes no
        notice of that is waited for as before.
        """
        self._handlers.give_up(since)

    def abort(self) -> None:
        """Give up: close the connection at once and cancel the handlers that still run."""
        self._stop_watching()
        self._stream.transport.abort()
        self._handlers.abandon()

    def _stop_watching(self) -> None:
        self._handlers.stop_watching()
        if self._own_failures is not None:
            self._own_failures.close()

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the handler began that has run longest; None if none runs."""
        return self._handlers.oldest_start

    # Requests

    def _accept_batch(self) -> int:
        """Start requests that have arrived whole: a batch at most, and as far as there is room.

        Returns:
            How many bytes the next one needs.

        """
        reader, share, header = self._reader, self._share, self._header_size
        time_slice = self._slice
        parse, refusal, append = self._parse, self._rules.refusal, self._handlers.append
        buffer, end, now = memoryview(reader.buffer), reader.end, monotonic_ns()
        time_slice.end, time_slice.left = now + SLICE, CHECK_INTERVAL
        room = taken = 0
        if share is not None:
            room, taken = share.begin_batch()
        self._price = count = 0
        try:
            while end - (start := reader.start) >= header and count < BATCH:
                request = parse(buffer, start, now)
                length, payload = header, None
                if request.type == _WRITE or self._extended:
                    length += request.payload_length(extended=self._extended)
                    if end - start < length:
                        if share is not None and length > UNCOUNTED and (count or not taken):
                            self._price = max(cost(request), length)
                        return length
                    if request.type == _WRITE:
                        payload = buffer[start + header : start + length]
                if share is not None:
                    price = cost(request)
                    if taken >= room and (taken or not share.may_take(price)):
                        self._price = max(price, length)
                        return length
                    taken += price
                reader.start = start + length
                if request.type == _DISC:
                    self._on_disconnect()
                    return header
                count += 1
                if error := refusal(request):
                    self._reply(request, error)
                else:
                    append(request, payload)
            return header
        finally:
            self.stats.in_flight += count
            if share is not None:
                share.end_batch(taken)
            self._handlers.go_on()

    # Replies

    def _reply(
        self, request: Request, error: int, content: Content = b"", reason: str = ""
    ) -> None:
        self._replies += self._serialize(request, error, content)
        if error:
            self._failed.append(request)
            reason = reason or REFUSALS.get(error, REFUSALS[errno.EINVAL])
            self._on_event(RequestFailed(*_named(request), error, reason=reason))
        else:
            self._succeeded.append(request)
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        self.last_reply = self._loop.time()
        self._stream.send(self._replies)
        self.stats.answered(self._succeeded, self._failed, monotonic_ns())
        if self._share is not None:
            self._unsent += sum(map(cost, self._succeeded)) + sum(map(cost, self._failed))
            if not self._stream.congested:
                self._settle()
        self._replies, self._succeeded, self._failed = [], [], []
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
