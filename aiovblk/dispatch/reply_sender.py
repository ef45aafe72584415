"""Send the replies of one connection: replies that are ready together are sent together.

What holds here:

* A request counts as in flight until its reply is handed to the socket.
* Replies of one batch, or of one turn of the event loop, leave in one send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns

from ..events import RequestEvent
from ..protocol import SERIALIZERS, Payload, ReplyContent, ReplyMode, Request
from ..stream import BusyPoll, StreamProtocol
from .memory_budget import REQUEST_COST, ConnectionQuota, request_cost
from .refusals import failed_event
from .reply_charges import ReplyCharges
from .stats import Stats


class ReplySender:
    """The sending half of a :class:`Dispatcher`: serialize, coalesce, send and count replies.

    Requests that succeeded without waiting have no :class:`Request`: the loop that serves them
    (:mod:`.serving`) appends their replies to :attr:`buffers`, and their lengths to a list.

    Args:
        stats: the counters of the connection.
        mode: the form of the replies.
        quota: what is refunded for each reply; None for the kernel, which has no quota.
        on_event: called with each :class:`RequestFailed`.

    Attributes:
        stream: what the replies are sent on; set before the first one.
        buffers: replies that are to be sent; always the same list.
        is_due: whether a call of :meth:`send` is to come.
        arrival: when requests were received last, in nanoseconds of :func:`time.monotonic_ns`.
        read_lengths, write_lengths: bytes of those that succeeded without waiting, and whose
            replies are to be sent; always the same lists.
        polling: what is extended whenever replies may have been sent; None for no busy polling.
        last_reply: when (in the loop's time) replies were sent last.

    """

    stream: StreamProtocol

    def __init__(
        self,
        stats: Stats,
        mode: ReplyMode,
        quota: ConnectionQuota | None,
        on_event: Callable[[RequestEvent], None],
    ) -> None:
        self.stats = stats
        self.buffers: list[Payload] = []
        self.is_due = False
        self.polling: BusyPoll | None = None
        self.arrival = 0
        self.read_lengths: list[int] = []
        self.write_lengths: list[int] = []
        self._charges = None if quota is None else ReplyCharges(quota)
        self._on_event = on_event
        self._serialize = SERIALIZERS[mode]
        self._loop = asyncio.get_running_loop()
        self._succeeded: list[tuple[int, int, int]] = []  # command, length, arrival
        self._failed: list[Request] = []
        self.last_reply = self._loop.time()
        self._idle_waiters: list[asyncio.Future[None]] = []

    def attach(self, stream: StreamProtocol) -> None:
        """Send on this connection from now on."""
        self.stream = stream
        if self._charges is not None:
            stream.on_write_resumed = self._charges.refund_sent

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done as soon as every received request is answered."""
        idle: asyncio.Future[None] = self._loop.create_future()
        if self.stats.in_flight or self.buffers:
            self._idle_waiters.append(idle)
        else:
            idle.set_result(None)
        return idle

    def reply(
        self, request: Request, error: int, content: ReplyContent = b"", reason: str = ""
    ) -> None:
        """Queue the reply to a request that is counted in :attr:`Stats.in_flight`.

        It is sent at the end of the batch, or of the loop's turn.
        """
        self.buffers += self._serialize(request, error, content)
        if error:
            self._failed.append(request)
            self._on_event(failed_event(request, error, reason))
        else:
            self._succeeded.append((request.type, request.length, request.arrival))
        if self._charges is not None:
            self._charges.waited += request_cost(request)
        if not self.is_due:
            self.is_due = True
            self._loop.call_soon(self.send)

    def add_waited(self, command: int, length: int, arrival: int) -> None:
        """Count a READ or WRITE that was served directly, and has waited; its reply is queued."""
        self._succeeded.append((command, length, arrival))
        if self._charges is not None:
            self._charges.waited += REQUEST_COST + length
        if not self.is_due:
            self.is_due = True
            self._loop.call_soon(self.send)

    def send(self) -> None:
        """Send the queued replies, count them, and wake those who wait for :meth:`drained`."""
        self.is_due = False
        if self.buffers:
            self.last_reply = self._loop.time()
            self.stream.send(self.buffers)
            self.buffers.clear()
            now = monotonic_ns()
            reads, writes, charges = self.read_lengths, self.write_lengths, self._charges
            if reads or writes:
                if charges is not None and (charges.charged or self.stream.write_paused):
                    charges.charge_sent(reads, writes)
                self.stats.record_batch(reads, writes, now - self.arrival)
                if reads:
                    reads.clear()
                if writes:
                    writes.clear()
            succeeded, failed = self._succeeded, self._failed
            if succeeded or failed:  # they were in flight
                self._succeeded, self._failed = [], []
                self.stats.record_replies(succeeded, failed, now)
                if charges is not None:
                    charges.send_waited()
            if charges is not None and charges.sent and not self.stream.write_paused:
                charges.refund_sent()
        else:
            self.stats.record_in_flight()
        if self.polling is not None:
            self.polling.extend()
        if self._idle_waiters:
            self._wake_idle_waiters()

    def _wake_idle_waiters(self) -> None:
        """Wake those who wait for :meth:`drained`, if nothing is in flight."""
        while self._idle_waiters and not self.stats.in_flight:
            idle = self._idle_waiters.pop()
            if not idle.done():  # its waiter may have been cancelled
                idle.set_result(None)

    def charge(self) -> None:
        """Charge to the quota what was answered without waiting, and is not sent yet."""
        assert self._charges is not None  # only called if there is a quota
        self._charges.charge(self.read_lengths, self.write_lengths)
