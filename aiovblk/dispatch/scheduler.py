"""Decide when the requests of one connection are served, and in which task.

What holds here:

* Handlers start in the order of arrival, as far as the concurrency limiter allows.
* A task starts eagerly: in the callback that has received the requests. No turn of the loop is
  spent on handlers that do not wait. (Before Python 3.12: :mod:`.deferred_start`.)
* Requests are served for at most a time slice; the others then wait for the next slice, while other
  connections run.
* The kernel is never kept waiting: what cannot be served yet is accepted into the queue. So is what
  waits for the limiter. A network client's requests stay in its buffer while it waits for a slice
  or for memory.
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from ..protocol import ReplyMode, Request
from ..stream import SLICE, BusyPoll
from .concurrency import ConcurrencyLimiter
from .failures import Reporter
from .handler_call import HandlerAdapter
from .memory_budget import ConnectionQuota
from .outcomes import CANCELLED_BY_SERVER, OutcomeResolver
from .pacing import Pacer
from .receiver import RequestReceiver
from .reply_sender import ReplySender
from .serving import RequestServer, release
from .slow_requests import SlowRequestMonitor, as_request
from .validation import RequestValidator

# As Any: ``eager_start`` is unknown to a type checker that takes the oldest Python.
start_eagerly: Any = asyncio.Task


class HandlerScheduler:
    """Serve the requests of one connection in tasks.

    One task, the leader, serves requests one after another. When a handler has to wait, the task
    belongs to that handler until it ends, and another task becomes the leader.

    Args:
        receiver, sender, adapter, validator, mode: as those of :class:`RequestServer`.
        reporter: classifies and logs what a handler raises.
        limiter: how many handlers may run at once (concurrency).
        quota: what requests that wait are charged to; None for the kernel.
        slow_request: seconds after which a handler that still runs is reported; None for never.
        busy_poll: microseconds for which the loop is kept awake after each batch, and after each
            reply; None for none.
        on_slow: called with each such request, and for how many seconds it has run.
        server: what serves the requests, from where they come to where their results go.

    """

    def __init__(
        self,
        receiver: RequestReceiver,
        sender: ReplySender,
        adapter: HandlerAdapter,
        validator: RequestValidator,
        *,
        mode: ReplyMode,
        reporter: Reporter,
        limiter: ConcurrencyLimiter,
        quota: ConnectionQuota | None,
        slow_request: float | None,
        busy_poll: int | None,
        on_slow: Callable[[Request, float], None],
        server: type[RequestServer] = RequestServer,
    ) -> None:
        self._receiver = receiver
        self._sender = sender
        self._limiter = limiter
        self._quota = quota
        self._pacer = Pacer(quota, self.start_ready)
        self._outcomes = OutcomeResolver(adapter.handle, reporter)
        self._running = SlowRequestMonitor(slow_request, on_slow)
        self._server = server(
            receiver,
            sender,
            adapter,
            validator,
            pacer=self._pacer,
            limiter=limiter,
            waiter=self,
            outcomes=self._outcomes,
            running=self._running,
            mode=mode,
            quota=quota,
        )
        sender.polling = None if busy_poll is None else BusyPoll(busy_poll)
        self._loop = asyncio.get_running_loop()

    def attach(self) -> None:
        """Prepare to serve; the receiver has been attached to its reader."""
        self._server.attach()

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the longest-running handler began; None if none runs."""
        return self._running.oldest_start

    def is_serving(self) -> bool:
        """Return whether a handler runs that has had to wait, or the next time slice will come."""
        return any(not task.done() for task in self._running.tasks) or self._pacer.is_coming()

    def stop_monitoring(self) -> None:
        """Stop reporting slow requests, and polling."""
        self._running.stop_monitoring()
        if self._sender.polling is not None:
            self._sender.polling.stop()

    def fail_running(self, since: float = math.inf) -> None:
        """Cancel handlers and fail their requests: see :meth:`.Dispatcher.fail_running`."""
        if since == math.inf:
            self._fail_queue()
        for task, (start, _) in list(self._running.tasks.items()):
            if start <= since:
                self._outcomes.fail(task)

    def fail_arrived_before(self, arrival: int) -> None:
        """Cancel the handlers of requests that came before this time, and fail them with EIO.

        Each is cancelled once, however often this is called. Those that wait for their turn fail at
        once.

        Args:
            arrival: nanoseconds, of :func:`time.monotonic_ns`.

        """
        queue = self._receiver.queue
        while queue and queue[0][0].arrival < arrival:
            self._fail_next()
        for task, _ in self.running_since(arrival):
            self._outcomes.fail_once(task)

    def running_since(self, arrival: int) -> list[tuple[asyncio.Task[None], Request]]:
        """Return the handlers that run, and their requests, of those that came before this time."""
        running = [(task, as_request(each)) for task, (_, each) in self._running.tasks.items()]
        return [(task, request) for task, request in running if request.arrival < arrival]

    def forget(self, task: asyncio.Task[None], request: Request) -> None:
        """Forget a handler whose request is answered although it has not ended."""
        self._running.tasks.pop(task, None)
        self._server.answered[task] = request

    @property
    def is_waiting(self) -> bool:
        """Whether a request waits, for its handler to end or to begin."""
        return bool(self._running.tasks or self._receiver.queue)

    def cancel_all(self) -> None:
        """Cancel the handlers that still run, and start no more."""
        self._outcomes.fail_all()
        self._receiver.close()
        self._running.stop_monitoring()
        self._fail_queue()
        for task in list(self._running.tasks):
            task.cancel()

    def _fail_queue(self) -> None:
        self._limiter.cancel_wait(self)
        while self._receiver.queue:
            self._fail_next()

    def _fail_next(self) -> None:
        request, payload = self._receiver.queue.popleft()
        if payload is not None:
            release(payload)
        self._sender.reply(request, errno.EIO, b"", CANCELLED_BY_SERVER)

    def serve_arrived(self) -> bool:
        """Serve what has arrived; the consumer of the reader (:meth:`.consume`).

        Returns:
            False to stop until :meth:`may_go_on` returns.

        """
        receiver, pacer = self._receiver, self._pacer
        self._sender.arrival = now = monotonic_ns()
        # Uvloop receives again at once when the buffer was filled: that is the same slice.
        if not receiver.reader.filled:
            pacer.slice_end = now + SLICE
        self.start_ready()
        return self._quota is None or not (receiver.memory_needed or pacer.paused)

    async def may_go_on(self) -> None:
        """Wait for the memory of the next request, or for the next time slice.

        Cancellation: safe.
        """
        if self._receiver.memory_needed:
            assert self._quota is not None  # the kernel never waits for memory
            await self._quota.reserve(self._receiver.memory_needed)
            self._receiver.memory_needed = 0
        else:
            await self._pacer.resumed()

    def start_ready(self) -> None:
        """Serve requests while the limiter allows it and the time slice lasts; send the replies."""
        sender, reader = self._sender, self._receiver.reader
        is_outermost, sender.is_due = not sender.is_due, True
        self._pacer.begin_batch()
        try:
            if self._quota is not None and self._quota.reserved and self._receiver.has_next():
                self._receiver.accept()  # its reservation is for it alone
            self._start_tasks()
            if reader.end - reader.start >= reader.wanted:
                self._queue_rest()
        finally:
            if is_outermost:
                sender.send()
        if self._receiver.memory_needed:  # on Python 3.11 not only in the consumer's call
            reader.end_consuming(True)

    def _start_tasks(self) -> None:
        server, pacer, limiter = self._server, self._pacer, self._limiter
        receiver, reader = self._receiver, self._receiver.reader
        while not pacer.paused and (
            receiver.queue
            # Inlined: receiver.has_next().
            or (
                reader.end - reader.start >= reader.wanted
                and reader.consuming
                and not receiver.memory_needed
            )
        ):
            # Inlined: limiter.acquire(self).
            if limiter.running < limiter.limit and not limiter.waiting:
                limiter.running += 1
            elif not limiter.acquire(self):
                break
            context = server.context.copy()
            try:
                # Eager: if no handler has to wait, all are done when this returns.
                task = start_eagerly(
                    server.serve(context), loop=self._loop, context=context, eager_start=True
                )
            except BaseException:  # a handler was interrupted; the others go on
                self._accept_all()
                self._loop.call_soon(self.start_ready)
                raise
            if not task.done():
                server.leave_to_handler(task)

    def _queue_rest(self) -> None:
        """Accept requests that cannot be served yet."""
        if self._quota is None:
            self._accept_all()
            return
        server, pacer, receiver = self._server, self._pacer, self._receiver
        # Without credit, too: it may be one that needs no memory, or has to ask for it.
        while not pacer.paused and (
            pacer.credit > 0 or server.renew_credit() or receiver.has_next()
        ):
            if not server.accept_next():
                break

    def _accept_all(self) -> None:
        while self._receiver.accept():
            pass
