"""Start handlers before Python 3.12, where a task takes its first step at the next turn."""

from __future__ import annotations

from asyncio import Task
from typing import Any

from .scheduler import HandlerScheduler


class DeferredScheduler(HandlerScheduler):
    """A scheduler that does not know yet, when it starts a task, whether that will have to wait.

    If the last one had to, each request gets a task at once; otherwise one task serves them all,
    from the receive buffer. Arguments as those of :class:`HandlerScheduler`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._starting = 0  # tasks whose first step is still to come
        self._slow = False  # whether the last task to start had to wait
        self._is_left = False  # whether what has arrived is left to a task just created

    def _start_tasks(self) -> None:
        queue, receiver, server = self._receiver.queue, self._receiver, self._server
        self._is_left = False
        if self._slow:
            self._queue_rest()
        while (
            not self._pacer.paused
            and (len(queue) > self._starting or (not self._starting and receiver.has_next()))
            and (self._slow or not self._starting)
            and self._limiter.acquire(self)
        ):
            self._starting += 1
            self._is_left = not self._slow
            context = server.context.copy()
            task = self._loop.create_task(server.serve(context), context=context)
            self._loop.call_soon(self._has_begun, task)

    def _queue_rest(self) -> None:
        # The task runs before the transport receives again: what it finds needs no queue. If more
        # arrives all the same, or the stream has ended, all is queued.
        if self._receiver.reader.ended or not self._is_left:
            super()._queue_rest()
        self._is_left = False

    def _has_begun(self, task: Task[None]) -> None:
        """Called by the loop right after the first step of a task."""
        self._starting -= 1
        if self._server.leader is not task:  # cancelled before its first step
            self._limiter.release()
        else:
            self._slow = not task.done()
            if self._slow:
                self._server.leave_to_handler(task)
        if not self._starting:  # otherwise the last of them does
            self.start_ready()
