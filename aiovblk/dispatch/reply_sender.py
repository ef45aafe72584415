"""Send the replies of one connection: replies that are ready together are sent together.

What holds here:

* A request counts as in flight until its reply is handed to the socket.
* Replies of one batch, or of one turn of the event loop, leave in one send.
* The memory of a request is refunded to the connection's quota when its reply has left, except for
  one write buffer (backpressure: a client that does not read its replies gets no further memory).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from time import monotonic_ns

from ..events import RequestEvent, RequestFailed
from ..protocol import SERIALIZERS, Payload, ReplyContent, ReplyMode, Request
from ..stream import StreamProtocol
from .memory_budget import ConnectionQuota, request_cost
from .stats import Stats, command_name
from .validation import REFUSAL_REASONS


class ReplySender:
    """The sending half of a :class:`Dispatcher`: serialize, coalesce, send and count replies.

    Args:
        stats: the counters of the connection.
        mode: the form of the replies.
        quota: what is refunded for each reply; None for the kernel, which has no quota.
        on_event: called with each :class:`RequestFailed`.

    Attributes:
        last_reply: when (in the loop's time) replies were sent last.

    """

    def __init__(
        self,
        stats: Stats,
        mode: ReplyMode,
        quota: ConnectionQuota | None,
        on_event: Callable[[RequestEvent], None],
    ) -> None:
        self.stats = stats
        self._quota = quota
        self._on_event = on_event
        self._serialize = SERIALIZERS[mode]
        self._loop = asyncio.get_running_loop()
        self._stream: StreamProtocol
        self._replies: list[Payload] = []
        self._succeeded: list[Request] = []
        self._failed: list[Request] = []
        self._sent_cost = 0  # bytes of sent requests, to be refunded
        self._send_is_due = False
        self.last_reply = self._loop.time()
        self._idle_waiters: list[asyncio.Future[None]] = []

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done as soon as every received request is answered."""
        idle: asyncio.Future[None] = self._loop.create_future()
        if self.stats.in_flight:
            self._idle_waiters.append(idle)
        else:
            idle.set_result(None)
        return idle

    def _reply(
        self, request: Request, error: int, content: ReplyContent = b"", reason: str = ""
    ) -> None:
        """Queue the reply to a request; it is sent at the end of the batch, or of the loop turn."""
        self._replies += self._serialize(request, error, content)
        if error:
            self._failed.append(request)
            reason = reason or REFUSAL_REASONS.get(error, REFUSAL_REASONS[errno.EINVAL])
            self._on_event(RequestFailed(*event_fields(request), error, reason=reason))
        else:
            self._succeeded.append(request)
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send the queued replies, count them, and wake those who wait for :meth:`drained`."""
        self._send_is_due = False
        self.last_reply = self._loop.time()
        self._stream.send(self._replies)
        self.stats.record_replies(self._succeeded, self._failed, monotonic_ns())
        if self._quota is not None:
            self._sent_cost += sum(map(request_cost, self._succeeded)) + sum(
                map(request_cost, self._failed)
            )
            if not self._stream.write_paused:
                self._refund_sent()
        self._replies, self._succeeded, self._failed = [], [], []
        while self._idle_waiters and not self.stats.in_flight:
            idle = self._idle_waiters.pop()
            if not idle.done():  # its waiter may have been cancelled
                idle.set_result(None)

    def _refund_sent(self) -> None:
        """Refund the memory of replies that have left, except for one write buffer."""
        assert self._quota is not None  # only called if there is a quota
        self._quota.refund(self._sent_cost)
        self._sent_cost = 0


def event_fields(request: Request) -> tuple[str, int, int]:
    """Return the first fields of a :class:`RequestEvent`: command, offset, length."""
    return command_name(request.type), request.offset, request.length
