"""Serve the requests of a ublk device: the dispatcher whose requests come from a queue of tags.

Validation, scheduling, limits, statistics and events are those of every connection
(``aiovblk/dispatch/``). What differs is where a request comes from, and where its result goes.

What holds here:

* Exactly one result per tag, whatever its handler does.
* The payload of a WRITE is copied when its handler starts, not when the request comes: what waits
  takes no memory.
* One system call gives the results of a batch to the kernel and brings the next requests. What it
  brings is served in the time slice that the batch was in.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable

from ...device import BlockDevice
from ...dispatch import ConcurrencyLimiter, FailureLog, Reporter, Stats
from ...dispatch.dispatcher import Scheduler
from ...dispatch.outcomes import CANCELLED_BY_SERVER
from ...dispatch.refusals import event_fields
from ...dispatch.validation import RequestValidator, kernel_negotiation
from ...events import RequestEvent, SlowRequest
from ...protocol import NegotiationResult, ReplyMode, Request
from ...ublk import Queue
from .overdue import OverdueRequests
from .replies import TagReplySender
from .serving import TagHandlerAdapter, TagReader, TagReceiver, TagServer

logger = logging.getLogger("aiovblk")

ROUNDS = 8
"""How often new requests are taken before the event loop has its turn."""


class UblkDispatcher:
    """Serve one device over the queue of one ublk device.

    Args:
        device, stats, limiter, handler_timeout, slow_request, busy_poll, reporter, on_event: as
            those of :class:`~aiovblk.dispatch.Dispatcher`.
        on_disconnect: called when the kernel has taken the device away in order.

    """

    def __init__(
        self,
        device: BlockDevice,
        stats: Stats,
        *,
        limiter: ConcurrencyLimiter | None = None,
        handler_timeout: float | None = None,
        slow_request: float | None = None,
        busy_poll: int | None = None,
        reporter: Reporter | None = None,
        on_event: Callable[[RequestEvent], None] = lambda event: None,
        on_disconnect: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        negotiated: NegotiationResult = kernel_negotiation(device)
        self.stats = stats
        self._on_event = on_event
        self._on_disconnect = on_disconnect
        self._validator = RequestValidator(device, negotiated)
        self._sender = TagReplySender(stats, on_event, self._serve_arrived, self._end)
        self._receiver = TagReceiver(
            self._sender, self._validator, negotiated, None, on_disconnect, lambda: None
        )
        self._adapter = TagHandlerAdapter(device, negotiated, handler_timeout)
        self._scheduler = Scheduler(
            self._receiver,
            self._sender,
            self._adapter,
            self._validator,
            mode=ReplyMode.SIMPLE,
            reporter=reporter or Reporter(FailureLog(), device),
            limiter=limiter or ConcurrencyLimiter(),
            quota=None,
            slow_request=slow_request,
            busy_poll=busy_poll,
            on_slow=self._publish_slow_request,
            server=TagServer,
        )
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._reader = TagReader()
        self._overdue: OverdueRequests | None = None
        self._error: OSError | None = None
        self._queue: Queue | None = None
        self._is_serving = False
        self._is_paused = False
        self._fails_all = False

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Refuse a socket: requests come from a queue."""
        raise NotImplementedError("ublk has no sockets")

    def attach_queue(self, queue: Queue) -> None:
        """Serve a queue, which this thread has made. Call it once, in the event loop."""
        self._queue = self._adapter.queue = self._receiver.source = queue
        self._sender.attach_queue(queue)
        self._receiver.attach(self._reader)
        self._reader.wanted = 1
        self._scheduler.attach()
        if queue.kills_server:
            self._overdue = OverdueRequests(self._scheduler, self._answer)
        self._loop.add_reader(queue.fd, self._serve)
        if queue.has_requests:  # of a device that is taken over; nothing else wakes this
            self._loop.call_soon(self._serve)

    async def run(self) -> None:
        """Serve until the kernel takes the device away, or the queue is closed.

        Raises:
            OSError: the kernel or the queue failed.

        Cancellation: safe; call it again to continue.

        """
        await asyncio.wait([self._ended])
        if self._error is not None:
            raise self._error

    # Requests

    def _serve(self) -> None:
        """Serve what has come; the callback of the event loop."""
        self._serve_arrived(is_new_turn=True)

    def _serve_arrived(self, is_new_turn: bool) -> None:
        """Serve what has come, and what comes meanwhile.

        Args:
            is_new_turn: whether this is called first in a turn of the event loop; else the time
                slice goes on.

        """
        queue = self._queue
        if queue is None or self._is_serving or self._is_paused:
            return
        self._is_serving = True
        try:
            for _ in range(ROUNDS):
                if not queue.has_requests:
                    break
                self._reader.add(queue.take())
                self._reader.filled = not is_new_turn  # as when a socket has more: the same slice
                is_new_turn = False
                if self._fails_all:
                    self._fail_arrived()
                self._scheduler.serve_arrived()
        finally:  # also after an interrupt: nothing else would come and call this again
            self._is_serving = False
            if queue.is_over or queue.error is not None:
                self._end(queue.error)
        if self._overdue is not None:
            self._overdue.watch()

    def _fail_arrived(self) -> None:
        self._receiver.close()
        self._scheduler.fail_running()

    def _answer(self, task: asyncio.Task[None], request: Request) -> None:
        """Answer a request whose handler does not end although it was cancelled."""
        logger.error(
            "a handler does not end although it was cancelled; its request is answered with EIO"
            " before the kernel kills this process"
        )
        self._scheduler.forget(task, request)
        self._sender.reply(request, errno.EIO, b"", CANCELLED_BY_SERVER)

    def _end(self, error: OSError | None) -> None:
        """Note that no more requests come, and give the queue back. No-op: there is none."""
        queue, self._queue = self._queue, None
        if queue is None:
            return
        if error is None and not queue.is_over:
            error = OSError(errno.ECANCELED, "its queue was closed")
        self._error = error
        self._scheduler.stop_monitoring()
        if self._overdue is not None:
            self._overdue.close()
        self._loop.remove_reader(queue.fd)
        self._reader.start = self._reader.end  # what waits to be served fails with the queue
        if error is None:
            self._on_disconnect()
        self._ended.set_result(None)
        queue.close()

    # As of every connection

    @property
    def last_reply(self) -> float:
        """When (in the loop's time) results were given to the kernel last."""
        return self._sender.last_reply

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the longest-running handler began; None if none runs."""
        return self._scheduler.oldest_start

    async def resize(self, size: int) -> None:
        """Set the size of the device in bytes; requests beyond it are refused."""
        self._validator.size = size

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done as soon as every request that has come is answered."""
        return self._sender.drained()

    def stop_receiving(self) -> None:
        """No-op: the kernel says when nothing comes any more."""

    def close(self) -> asyncio.Future[None]:
        """Give results that are ready to the kernel, then the queue; the other requests fail."""
        self._fails_all = True  # what still comes
        if self._queue is not None:
            self._sender.send()
        self._end(None)
        return self._ended

    def leave(self) -> None:
        """Give the queue back, without answers: what is in flight goes to the next server.

        The device has to be one that survives.
        """
        self._end(None)

    async def pause(self) -> None:
        """Take no more requests; returns once all that have been taken are answered.

        Others stay in the queue, as if they had not come: :meth:`leave` has the driver send them to
        the next server. :meth:`run` must have been cancelled before.
        """
        self._is_paused = True
        if self._queue is not None:
            self._loop.remove_reader(self._queue.fd)
            self._receiver.close()  # what is taken, and not begun, counts as in flight
        await self.drained()

    def resume(self) -> None:
        """Take requests again after :meth:`pause`; call :meth:`run` again."""
        self._is_paused = False
        if self._queue is not None:
            self._loop.add_reader(self._queue.fd, self._serve)
            self._loop.call_soon(self._serve)  # what has come meanwhile

    def fail_running(self, since: float = math.inf) -> None:
        """Cancel handlers and fail their requests with EIO: as :meth:`.Dispatcher.fail_running`."""
        self._scheduler.fail_running(since)

    def abort(self) -> None:
        """Cancel the handlers that still run, and answer whatever comes with EIO.

        The queue stays open, so that the kernel can take the device away in order.
        """
        self._fails_all = True
        self._scheduler.cancel_all()

    def _publish_slow_request(self, request: Request, seconds: float) -> None:
        self._on_event(SlowRequest(*event_fields(request), seconds))
