"""Complete the requests of a ublk device: results that are ready together go together."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from time import monotonic_ns

from ...dispatch.refusals import failed_event
from ...dispatch.reply_sender import ReplySender
from ...dispatch.stats import Stats
from ...events import RequestEvent
from ...protocol import Command, ReplyContent, ReplyMode, Request
from ...ublk import Queue

# Plain ints: an IntEnum's comparison costs as much as the rest.
_READ, _WRITE = int(Command.READ), int(Command.WRITE)


class TagReplySender(ReplySender):
    """The sending half of a :class:`.UblkDispatcher`.

    Args:
        stats: the counters of the device.
        on_event: called with each :class:`RequestFailed`.
        on_sent: called when results were given to the kernel, which may have brought requests;
            with whether nothing was served in this turn of the event loop yet.
        on_broken: called when the queue cannot be used any more, with the reason.

    """

    def __init__(
        self,
        stats: Stats,
        on_event: Callable[[RequestEvent], None],
        on_sent: Callable[[bool], None],
        on_broken: Callable[[OSError], None],
    ) -> None:
        super().__init__(stats, ReplyMode.SIMPLE, None, on_event)
        self._on_sent = on_sent
        self._on_broken = on_broken
        self._queue: Queue | None = None

    def attach_queue(self, queue: Queue) -> None:
        """Give results to this queue from now on."""
        self._queue = queue

    def reply(
        self, request: Request, error: int, content: ReplyContent = b"", reason: str = ""
    ) -> None:
        """Complete a request that is counted in :attr:`Stats.in_flight`.

        Args:
            request: its cookie is its tag.
            error: an error number, positive; 0 for success.
            content: of a READ that has succeeded.
            reason: of an error, for events.

        The kernel gets the result at the end of the batch, or of the loop's turn.
        """
        queue, command = self._queue, request.type
        assert queue is not None  # requests come from it
        if not error and command == _READ:
            assert isinstance(content, bytes | memoryview)  # simple replies have no other form
            try:
                queue.place(request.cookie, content)
            except OSError as exc:
                error, reason = errno.EIO, str(exc)
        if error:
            queue.complete(request.cookie, -error)
            self._failed.append(request)
            self._on_event(failed_event(request, error, reason))
        else:
            has_data = command in (_READ, _WRITE)
            queue.complete(request.cookie, request.length if has_data else 0)
            self._succeeded.append((command, request.length, request.arrival))
        self._send_soon()

    def add_waited(self, command: int, length: int, arrival: int) -> None:
        """Count a READ or WRITE that was served directly, and has waited; it is completed."""
        self._succeeded.append((command, length, arrival))
        self._send_soon()

    def _send_soon(self) -> None:
        if not self.is_due:
            self.is_due = True
            self._loop.call_soon(self.send, True)

    def send(self, is_new_turn: bool = False) -> None:
        """Give the results to the kernel, count them, and wake those who wait for an end."""
        self.is_due = False
        queue = self._queue
        if queue is not None and queue.unsubmitted:
            try:
                queue.submit()
            except OSError as exc:
                self._on_broken(exc)
            if queue.unsubmitted:  # the kernel is short of memory: they are in flight yet
                self._send_soon()
                return
            self.last_reply = self._loop.time()
        self._count()
        if self.polling is not None:
            self.polling.extend()
        if self._idle_waiters:
            self._wake_idle_waiters()
        self._on_sent(is_new_turn)

    def _count(self) -> None:
        now, reads, writes = monotonic_ns(), self.read_lengths, self.write_lengths
        if reads or writes:
            self.stats.record_batch(reads, writes, now - self.arrival)
            reads.clear()
            writes.clear()
        succeeded, failed = self._succeeded, self._failed
        if succeeded or failed:  # they were in flight
            self._succeeded, self._failed = [], []
            self.stats.record_replies(succeeded, failed, now)
        else:
            self.stats.record_in_flight()

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done as soon as every request that has come is answered."""
        idle: asyncio.Future[None] = self._loop.create_future()
        if self.stats.in_flight or (self._queue is not None and self._queue.unsubmitted):
            self._idle_waiters.append(idle)
        else:
            idle.set_result(None)
        return idle
