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
  limit itself is left waiting in its socket once it has taken its :class:`ConnectionQuota`.
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
    Command,
    NegotiationResult,
    Payload,
    ReplyContent,
    ReplyMode,
    Request,
    parse_extended_request,
    parse_request,
)
from ..stream import CHECK_INTERVAL, SLICE, Slice, StreamProtocol
from .concurrency import ConcurrencyLimiter
from .failures import FailureLog, Reporter
from .handler_call import HandlerAdapter
from .memory_budget import ConnectionQuota, request_cost
from .scheduler import HandlerScheduler
from .stats import Stats, command_name
from .validation import RequestValidator, kernel_negotiation

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
        negotiated: what was negotiated; by default what the kernel takes for granted.
        quota: what requests may take of the server's memory; those beyond it are left in the
            socket. None for the kernel, which must never be kept waiting.
        limiter: how many handlers may run at once; what all connections to one device share, whose
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
        negotiated: NegotiationResult | None = None,
        quota: ConnectionQuota | None = None,
        limiter: ConcurrencyLimiter | None = None,
        handler_timeout: float | None = None,
        slow_request: float | None = None,
        reporter: Reporter | None = None,
        on_event: Callable[[RequestEvent], None] = lambda event: None,
        on_disconnect: Callable[[], None],
        on_unfinished: Callable[[], None] = lambda: None,
    ) -> None:
        negotiated = negotiated or kernel_negotiation(device)
        self._on_event = on_event
        self._on_disconnect = on_disconnect
        self._on_unfinished = on_unfinished
        self.stats = stats
        self._quota = quota
        self._request_cost = 0  # of the next request, where it is known and has to be reserved
        self._batches = 0
        self._is_unfinished = False
        self._slice = Slice()
        self._validator = RequestValidator(device, negotiated)
        self._own_failure_log: FailureLog | None = None
        if reporter is None:
            self._own_failure_log = FailureLog()
            reporter = Reporter(self._own_failure_log, device)
        self._scheduler = HandlerScheduler(
            HandlerAdapter(device, negotiated, handler_timeout).handle,
            self._reply,
            reporter,
            limiter or ConcurrencyLimiter(),
            self._slice,
            slow_request=slow_request,
            on_slow=self._publish_slow_request,
        )
        self._serialize = SERIALIZERS[negotiated.mode]
        self._extended = negotiated.mode is ReplyMode.EXTENDED
        self._parse = parse_extended_request if self._extended else parse_request
        self._header_size = EXTENDED_REQUEST.size if self._extended else REQUEST.size
        self._loop = asyncio.get_running_loop()
        self._replies: list[Payload] = []
        self._succeeded: list[Request] = []
        self._failed: list[Request] = []
        self._unsent = 0
        self._send_is_due = False
        self.last_reply = self._loop.time()
        self._idle_waiters: list[asyncio.Future[None]] = []

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Take over a connected Unix stream socket; :meth:`run` then serves it.

        Args:
            sock: the server's end.
            received: what another server has received on it and left, as :meth:`detach` tells.

        """
        stream = StreamProtocol()
        stream.reader.feed_data(received)
        await self._loop.create_unix_connection(lambda: stream, sock=sock)
        self.attach_stream(stream)

    def attach_stream(self, stream: StreamProtocol) -> None:
        """Take over a connection on which the transmission phase begins."""
        self._stream = stream
        self._reader = stream.reader
        if self._quota is not None:
            stream.on_write_resumed = self._refund_sent

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises:
            ProtocolError: the client does not speak NBD.
            OSError: the connection broke.
            asyncio.IncompleteReadError: it ended within a request.

        Cancellation: safe; call it again to go on.

        """
        wanted, reader = self._header_size, self._reader
        while await reader.wait_for(wanted):
            self._send_is_due = True
            try:
                wanted = self._accept_batch()
            finally:
                self._send()
            if self._quota is not None:
                await self._before_the_next(self._quota, wanted)
            if reader.end - reader.start >= wanted:  # there is more than a batch
                await self._slice.next()

    async def _before_the_next(self, share: ConnectionQuota, wanted: int) -> None:
        """Reserve what the next request takes, before the rest of it is received."""
        self._batches += 1
        self._is_unfinished = False
        if self._request_cost:
            await share.reserve(self._request_cost)
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
        self._validator.size = size

    def drained(self) -> asyncio.Future[None]:
        """Done as soon as every request that has arrived is answered."""
        idle: asyncio.Future[None] = self._loop.create_future()
        if self.stats.in_flight:
            self._idle_waiters.append(idle)
        else:
            idle.set_result(None)
        return idle

    def abandoned(self) -> int:
        """How many requests are in flight of which no handler is at work, and waits for something.

        Where that stays the same, an interrupt (KeyboardInterrupt) has hit whoever was to answer.
        """
        handlers = self._scheduler
        is_served = handlers.any_running() or handlers.wait_for_slice()
        return 0 if is_served else self.stats.in_flight

    async def pause(self) -> None:
        """Take no request any more; returns once all that were taken are answered.

        :meth:`run` must have been cancelled before.
        """
        self._stream.transport.pause_reading()
        await self.drained()
        await self._stream.drain()

    def resume(self) -> None:
        """Take requests again: :meth:`run` may go on."""
        self._stream.transport.resume_reading()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Let go of the socket, after :meth:`pause`; the client notices nothing.

        Returns:
            The socket, and what was received of requests that were not taken.

        """
        self._stop_monitoring()
        descriptor, received = self._stream.detach()
        return socket.socket(fileno=descriptor), received

    def stop_receiving(self) -> None:
        """Let the client send no more; :meth:`run` takes what it has sent, and returns."""
        transport = self._stream.transport
        if not transport.is_closing():
            # By a duplicate: uvloop's own socket cannot be shut down.
            descriptor = os.dup(transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=descriptor) as sock, suppress(OSError):
                sock.shutdown(socket.SHUT_RD)

    def close(self) -> asyncio.Future[Exception | None]:
        """Send what is queued, then close the connection; the result is done once it is closed."""
        self._stop_monitoring()
        self._send()
        self._stream.transport.close()
        return self._stream.closed

    def fail_running(self, since: float = math.inf) -> None:
        """Fail with EIO what has been running since ``since`` (in the loop's time), and live on.

        Without ``since`` also what waits for its turn. Handlers are cancelled; one that takes no
        notice of that is waited for as before.
        """
        self._scheduler.fail_running(since)

    def abort(self) -> None:
        """Give up: close the connection at once and cancel the handlers that still run."""
        self._stop_monitoring()
        self._stream.transport.abort()
        self._scheduler.cancel_all()

    def _stop_monitoring(self) -> None:
        self._scheduler.stop_monitoring()
        if self._own_failure_log is not None:
            self._own_failure_log.close()

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the handler began that has run longest; None if none runs."""
        return self._scheduler.oldest_start

    # Requests

    def _accept_batch(self) -> int:
        """Start requests that have arrived whole: a batch at most, and as far as there is room.

        Returns:
            How many bytes the next one needs.

        """
        reader, share, header = self._reader, self._quota, self._header_size
        time_slice = self._slice
        parse, refusal, append = self._parse, self._validator.error_for, self._scheduler.enqueue
        buffer, end, now = memoryview(reader.buffer), reader.end, monotonic_ns()
        time_slice.end, time_slice.left = now + SLICE, CHECK_INTERVAL
        room = taken = 0
        if share is not None:
            room, taken = share.begin_batch()
        self._request_cost = count = 0
        try:
            while end - (start := reader.start) >= header and count < BATCH:
                request = parse(buffer, start, now)
                length, payload = header, None
                if request.type == _WRITE or self._extended:
                    length += request.payload_length(extended=self._extended)
                    if end - start < length:
                        if share is not None and length > UNCOUNTED and (count or not taken):
                            self._request_cost = max(request_cost(request), length)
                        return length
                    if request.type == _WRITE:
                        payload = buffer[start + header : start + length]
                if share is not None:
                    price = request_cost(request)
                    if taken >= room and (taken or not share.may_charge(price)):
                        self._request_cost = max(price, length)
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
            self._scheduler.start_ready()

    # Replies

    def _reply(
        self, request: Request, error: int, content: ReplyContent = b"", reason: str = ""
    ) -> None:
        self._replies += self._serialize(request, error, content)
        if error:
            self._failed.append(request)
            reason = reason or REFUSALS.get(error, REFUSALS[errno.EINVAL])
            self._on_event(RequestFailed(*_request_fields(request), error, reason=reason))
        else:
            self._succeeded.append(request)
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        self.last_reply = self._loop.time()
        self._stream.send(self._replies)
        self.stats.record_replies(self._succeeded, self._failed, monotonic_ns())
        if self._quota is not None:
            self._unsent += sum(map(request_cost, self._succeeded)) + sum(
                map(request_cost, self._failed)
            )
            if not self._stream.write_paused:
                self._refund_sent()
        self._replies, self._succeeded, self._failed = [], [], []
        while self._idle_waiters and not self.stats.in_flight:
            idle = self._idle_waiters.pop()
            if not idle.done():  # whoever waited may have been cancelled
                idle.set_result(None)

    def _publish_slow_request(self, request: Request, seconds: float) -> None:
        self._on_event(SlowRequest(*_request_fields(request), seconds))

    def _refund_sent(self) -> None:
        """Give back what replies took that have left, but for a bufferful."""
        assert self._quota is not None  # only called where there is one
        self._quota.refund(self._unsent)
        self._unsent = 0


def _request_fields(request: Request) -> tuple[str, int, int]:
    return command_name(request.type), request.offset, request.length
