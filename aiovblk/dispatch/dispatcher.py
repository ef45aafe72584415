"""Receive requests of one connection, pass them to handlers, and have their results sent.

What holds here:

* Exactly one reply per cookie, whatever its handler does; none for DISC.
* No payload after an error. A READ's payload has exactly the requested length: both are decided
  before the first byte of the reply is written.
* Requests are received while handlers wait. A full socket would block every call into the kernel,
  the one that disconnects included.
* What is in flight here is what the client has in flight: a request counts until its reply is sent,
  so neither buffered requests nor unsent replies outgrow the client's own limit (in the kernel,
  128 requests per connection: set->queue_depth in drivers/block/nbd.c). A client without such a
  limit gets backpressure: once it has used up its :class:`ConnectionQuota`, its requests stay in
  the socket.
* No connection keeps the event loop busy for longer than a time slice (:mod:`.pacing`); between two
  of its slices other connections run.
* Replies that are ready together are sent together (:mod:`.reply_sender`).
* DISC does not close the connection: the owner is notified, and closes it when nothing is in
  flight. Until then requests are answered, since the kernel goes on sending some.
"""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from collections.abc import Callable

from ..device import BlockDevice
from ..events import RequestEvent, SlowRequest
from ..protocol import NegotiationResult, Request
from ..stream import StreamProtocol
from . import detaching
from .concurrency import ConcurrencyLimiter
from .deferred_start import DeferredScheduler
from .failures import FailureLog, Reporter
from .handler_call import HandlerAdapter
from .memory_budget import ConnectionQuota
from .receiver import RequestReceiver
from .refusals import event_fields
from .reply_sender import ReplySender
from .scheduler import HandlerScheduler
from .stats import Stats
from .validation import RequestValidator, kernel_negotiation

Scheduler = HandlerScheduler if sys.version_info >= (3, 12) else DeferredScheduler


class Dispatcher:
    """Serve one device over one connection.

    Args:
        device: the device to serve. Its size is read once, here.
        stats: the counters; ``in_flight`` counts the requests of this connection alone.
        negotiated: the result of the handshake; by default what the kernel takes for granted.
        quota: the memory that requests of this connection may use; requests beyond it stay in the
            socket (backpressure). None for the kernel, which must never be kept waiting.
        limiter: limits how many handlers run at once (concurrency); connections to one device share
            it. By default this connection has its own.
        handler_timeout, slow_request, busy_poll: as in :class:`HandlerLimits`.
        reporter: logs why requests fail; connections that share its log report each cause once. By
            default this connection has its own.
        on_event: called with each :class:`SlowRequest` and :class:`RequestFailed`.
        on_disconnect: called when the client sends DISC; more than once if it sends it again.
        on_unfinished: called when only a part of a request has arrived, if there is a quota.

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
        busy_poll: int | None = None,
        reporter: Reporter | None = None,
        on_event: Callable[[RequestEvent], None] = lambda event: None,
        on_disconnect: Callable[[], None],
        on_unfinished: Callable[[], None] = lambda: None,
    ) -> None:
        negotiated = negotiated or kernel_negotiation(device)
        self.stats = stats
        self._on_event = on_event
        self._own_failure_log: FailureLog | None = None
        if reporter is None:
            self._own_failure_log = FailureLog()
            reporter = Reporter(self._own_failure_log, device)
        self._reporter = reporter
        self._validator = RequestValidator(device, negotiated)
        self._sender = ReplySender(stats, negotiated.mode, quota, on_event)
        self._receiver = RequestReceiver(
            self._sender, self._validator, negotiated, quota, on_disconnect, on_unfinished
        )
        self._scheduler = Scheduler(
            self._receiver,
            self._sender,
            HandlerAdapter(device, negotiated, handler_timeout),
            self._validator,
            mode=negotiated.mode,
            reporter=reporter,
            limiter=limiter or ConcurrencyLimiter(),
            quota=quota,
            slow_request=slow_request,
            busy_poll=busy_poll,
            on_slow=self._publish_slow_request,
        )

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Attach a connected Unix stream socket; :meth:`run` then serves it.

        Args:
            sock: the server's end.
            received: bytes that another server has received on it and not processed: the second
                result of :meth:`detach`.

        """
        stream = StreamProtocol()
        stream.reader.feed_data(received)
        await asyncio.get_running_loop().create_unix_connection(lambda: stream, sock=sock)
        self.attach_stream(stream)

    def attach_stream(self, stream: StreamProtocol) -> None:
        """Attach a connection at the beginning of its transmission phase."""
        self._stream = stream
        self._reader = stream.reader
        self._receiver.attach(stream.reader)
        self._sender.attach(stream)
        self._scheduler.attach()

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises:
            ProtocolError: the client does not speak NBD.
            OSError: the connection broke.
            asyncio.IncompleteReadError: it ended within a request.

        Cancellation: safe; call it again to continue.

        """
        while await self._reader.consume(self._scheduler.serve_arrived):
            await self._scheduler.may_go_on()

    def unfinished(self) -> tuple[int, int] | None:
        """Return which request is only partly received, as (number, bytes received), or None.

        None also while the server, not the client, delays the rest.
        """
        reader, receiver = self._reader, self._receiver
        if not reader.consuming or reader.wanted == receiver.header_size:
            return None
        return receiver.partial, reader.end - reader.start

    @property
    def idle_since(self) -> float | None:
        """When (in the loop's time) the last reply was sent; None if a request is in progress."""
        # A received request may wait for memory, or for a time slice.
        waits = self._reader.end - self._reader.start >= self._receiver.header_size
        return None if self.stats.in_flight or waits else self._sender.last_reply

    @property
    def last_reply(self) -> float:
        """When (in the loop's time) replies were sent last."""
        return self._sender.last_reply

    async def resize(self, size: int) -> None:
        """Set the size of the device in bytes; requests beyond it are refused."""
        self._validator.size = size

    def abandoned(self) -> int:
        """Return how many requests are in flight although no handler runs or waits for a slice.

        If that stays above 0, an interrupt (KeyboardInterrupt) has stopped the code that was to
        answer them.
        """
        return 0 if self._scheduler.is_serving() else self.stats.in_flight

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done as soon as every received request is answered."""
        return self._sender.drained()

    async def pause(self) -> None:
        """Stop receiving; returns once all accepted requests are answered and sent.

        :meth:`run` must have been cancelled before.
        """
        self._stream.transport.pause_reading()
        await self.drained()
        await detaching.drain(self._stream)

    def resume(self) -> None:
        """Receive again after :meth:`pause`; call :meth:`run` again."""
        self._stream.transport.resume_reading()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Detach the socket for a handover, after :meth:`pause`; see :func:`detaching.detach`."""
        self._stop_monitoring()
        return detaching.detach(self._stream)

    def stop_receiving(self) -> None:
        """Shut down receiving; :meth:`run` accepts what the client has sent, and returns."""
        detaching.stop_receiving(self._stream)

    def close(self) -> asyncio.Future[Exception | None]:
        """Send queued replies and close the connection; the future is done once it is closed."""
        self._stop_monitoring()
        self._sender.send()
        self._stream.transport.close()
        return self._stream.closed

    def fail_running(self, since: float = math.inf) -> None:
        """Cancel handlers and fail their requests with EIO; the connection stays usable.

        A handler that ignores its cancellation is still waited for.

        Args:
            since: cancel only handlers that began until then (in the loop's time); by default all,
                and queued requests fail as well.

        """
        self._scheduler.fail_running(since)

    def abort(self) -> None:
        """Close the connection at once and cancel the handlers that still run."""
        self._stop_monitoring()
        self._stream.transport.abort()
        self._scheduler.cancel_all()

    def _stop_monitoring(self) -> None:
        self._scheduler.stop_monitoring()
        if self._own_failure_log is not None:
            self._own_failure_log.close()

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the longest-running handler began; None if none runs."""
        return self._scheduler.oldest_start

    def _publish_slow_request(self, request: Request, seconds: float) -> None:
        self._on_event(SlowRequest(*event_fields(request), seconds))
