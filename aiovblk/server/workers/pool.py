"""Worker pool: the parent's side of a server whose clients are served by several processes.

What holds here:

* The parent accepts every client and sends its socket to the worker with the fewest clients.
* A worker that is lost takes its clients' connections with it, and its slot restarts another.
* At a shutdown, a worker that does not answer within the hang timeout is killed.
* What is known of a worker's clients is what it has reported: some tenths of a second old.

A slot counts a client from the moment its socket is sent until the worker sends "left".
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from ...aio.tasks import GracefulTask
from ...dispatch import Stats
from ...events import ClientRefused, EventBroadcaster, EventStream
from ...workers import Worker, WorkerLostError
from ..clients import publish_disconnect
from ..connection import ConnectionSettings, format_error
from ..listeners import address_of_peer
from .service import ClientReport, ClientService

logger = logging.getLogger("aiovblk")

WORKER_HANG_TIMEOUT = 5.0
"""Hang timeout: seconds, beyond those that a flush may take, within which a worker must answer its
parent at a forced shutdown, or it is killed. Also seconds until it is asked again."""


class RemoteClient:
    """A client that is served by a worker, as of the worker's last report."""

    def __init__(self, worker: Worker, report: ClientReport) -> None:
        self.number = report.number
        self.peer = report.peer
        self.export = report.export
        self.stats: Stats = report.stats
        self._worker = worker

    def __repr__(self) -> str:
        """Name the client and its export."""
        return f"<RemoteClient {self.peer} of {self.export!r}>"

    def stop(self) -> None:
        """Disconnect it gracefully: read no more requests; those in flight are answered."""
        self._worker.call("stop_client", self.number)


class WorkerPool:
    """Serve clients by a pool of worker processes; each client belongs to one worker.

    Args:
        workers: how many processes.
        make_settings: makes, in each worker, what its clients' connections share.
        drain_timeout: seconds that a device's flush may take.
        on_disconnect: called when clients have disconnected.

    Attributes:
        broadcaster: publishes the events of the clients.

    """

    def __init__(
        self,
        workers: int,
        make_settings: Callable[[], ConnectionSettings],
        drain_timeout: float,
        on_disconnect: Callable[[], None],
    ) -> None:
        hang_timeout = drain_timeout + WORKER_HANG_TIMEOUT
        self.broadcaster = EventBroadcaster()
        self._slots = [
            _WorkerSlot(make_settings, hang_timeout, self._on_change, self.broadcaster)
            for _ in range(workers)
        ]
        self._on_disconnect = on_disconnect
        self._stopped = False

    async def open(self) -> None:
        """Start the processes.

        Raises:
            TypeError: an export, or an option, cannot be sent to another process.
            WorkerLostError: a process ended at once.

        """
        starting = [asyncio.ensure_future(slot.start()) for slot in self._slots]
        try:
            await asyncio.gather(*starting)
        finally:
            for each in starting:
                each.cancel()
            await asyncio.wait(starting)

    def count(self) -> int:
        """Return how many clients there are, including those that are just being accepted."""
        return sum(slot.count for slot in self._slots)

    def recheck(self) -> None:
        """Ask the workers how many clients they have.

        See :data:`aiovblk.aio.tasks.RECHECK_INTERVAL`.
        """
        for slot in self._slots:
            slot.recheck()

    def connected(self) -> list[RemoteClient]:
        """Return the clients that are connected now, as far as they were reported."""
        return [client for slot in self._slots for client in slot.clients.values()]

    def stats(self) -> Stats:
        """Return the summed counters of all clients, present and past, as far as reported."""
        return Stats.sum(stats for slot in self._slots for stats in (slot.past, slot.stats))

    def listen(self) -> EventStream:
        """Subscribe to events from now on; in the workers, from when the message arrives."""
        for slot in self._slots:
            slot.listen()
        return self.broadcaster.subscribe()

    def accept(self, sock: socket.socket, number: int) -> None:
        """Send a client's socket to the least busy worker."""
        with sock:
            alive = [slot for slot in self._slots if slot.is_alive()]
            if alive:
                min(alive, key=lambda slot: slot.count).accept(sock, number)
            else:
                reason = "no worker process is running"
                logger.warning("client refused: %s", reason)
                self.broadcaster.publish(ClientRefused(number, address_of_peer(sock), reason))

    def stop(self) -> None:
        """Begin a graceful shutdown: read no more requests; those in flight are answered."""
        self._stopped = True
        for slot in self._slots:
            slot.stop()

    def cancel_handlers(self) -> None:
        """End the drain by force: cancel handlers that still run, and kill workers that hang."""
        for slot in self._slots:
            slot.cancel_handlers()

    async def close(self) -> list[str]:
        """End the processes; returns no failures, since no device is shared."""
        # By tasks that the end of the loop, which cancels all others, does not cancel.
        closing = [GracefulTask(slot.close(), lambda: None) for slot in self._slots]
        for each in closing:
            await each
        return []

    def _on_change(self, slot: _WorkerSlot) -> None:
        if not slot.is_alive() and not self._stopped:
            slot.restart()
        self._on_disconnect()


class _WorkerSlot:
    """Hold one place in the pool: the worker that has it, and restart that worker when it is lost.

    Args:
        make_settings: makes, in the worker, what its clients' connections share.
        hang_timeout: seconds within which the worker must answer at a forced shutdown.
        on_change: called when clients have disconnected, or the worker was lost.
        broadcaster: publishes the events of the clients.

    """

    def __init__(
        self,
        make_settings: Callable[[], ConnectionSettings],
        hang_timeout: float,
        on_change: Callable[[_WorkerSlot], None],
        broadcaster: EventBroadcaster,
    ) -> None:
        self.count = 0
        self.clients: dict[int, RemoteClient] = {}
        self.stats = Stats()
        self.past = Stats()  # of lost workers
        self.worker = Worker(self._on_event)
        self._make_service = partial(ClientService, make_settings)
        self._hang_timeout = hang_timeout
        self._on_change = on_change
        self._broadcaster = broadcaster
        self._has_listeners = False
        self._started = False
        self._restarting: asyncio.Task[None] | None = None
        self._cancelling: GracefulTask[None] | None = None
        self._counting: asyncio.Future[int] | None = None

    def is_alive(self) -> bool:
        """Return whether the worker can take clients."""
        return self._started

    async def start(self) -> None:
        """Start the process."""
        await self.worker.start(self._make_service)
        self._started = True
        self.worker.lost.add_done_callback(self._on_lost)
        if self._has_listeners:
            self.worker.call("listen")

    def listen(self) -> None:
        """Make the worker, and those that replace it, report events. No-op: it does already."""
        if self._started and not self._has_listeners:
            self.worker.call("listen")
        self._has_listeners = True

    def restart(self) -> None:
        """Start another process in place of one that was lost; log it if that fails."""
        self.worker = Worker(self._on_event)
        self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        try:
            await self.start()
        except Exception as exc:  # the function that loads the certificates may raise anything
            logger.error("cannot restart the worker process: %r", exc)

    def accept(self, sock: socket.socket, number: int) -> None:
        """Send a client's socket to the worker."""
        refusal = partial(ClientRefused, number, address_of_peer(sock))
        try:
            accepting = self.worker.call("accept", number, sockets=(sock,))
        except OSError as exc:
            self._lose_client(refusal, exc)
            return
        self.count += 1
        accepting.add_done_callback(partial(self._on_accepted, refusal))

    def _lose_client(self, refusal: Callable[[str], ClientRefused], error: BaseException) -> None:
        logger.error("cannot hand a client over to a worker process: %s", error)
        self._broadcaster.publish(refusal(format_error(error)))

    def _on_accepted(
        self, refusal: Callable[[str], ClientRefused], accepting: asyncio.Future[None]
    ) -> None:
        error = accepting.exception()
        # If the worker was lost, its clients are not counted any more; see _on_lost.
        if error is not None and not isinstance(error, WorkerLostError):
            self._lose_client(refusal, error)
            self.count -= 1
            self._on_change(self)

    def stop(self) -> None:
        """Begin a graceful shutdown: read no more requests; those in flight are answered."""
        if self._started:
            self.worker.call("stop")

    def recheck(self) -> None:
        """Ask the worker how many clients it has. No-op: it has none, or was asked already."""
        if self._started and self.count and (self._counting is None or self._counting.done()):
            self._counting = self.worker.call("count")
            self._counting.add_done_callback(self._on_count)

    def _on_count(self, counting: asyncio.Future[int]) -> None:
        # A server that shuts down accepts no clients, and a worker's messages arrive in order: if
        # it has fewer clients than are counted here, a "left" was lost.
        if not counting.exception() and counting.result() < self.count:
            self.count = counting.result()
            self._on_change(self)

    def cancel_handlers(self) -> None:
        """Cancel handlers that still run; kill the worker if it hangs. No-op: under way."""
        if self._started and self._cancelling is None:
            # Not cancelled by the end of the loop: the server's shutdown waits for it.
            self._cancelling = GracefulTask(self._cancel_handlers(), lambda: None)

    async def _cancel_handlers(self) -> None:
        # While a worker answers, it is not killed: it has deadlines of its own for its shutdown.
        while self.count:
            answer = self.worker.call("cancel_handlers")
            await asyncio.wait([answer], timeout=self._hang_timeout)
            if not answer.done():
                logger.error(
                    "worker process %d hangs: no answer in %g s; killing it",
                    self.worker.pid,
                    self._hang_timeout,
                )
                self.worker.kill()
                return
            await asyncio.sleep(WORKER_HANG_TIMEOUT)

    async def close(self) -> None:
        """End the process, also one that is just being restarted."""
        if self._cancelling is not None:
            self._cancelling.force_cancel()
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        self._started = False
        await self.worker.stop()

    def _on_event(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name, *arguments:
            case "left", *_:
                self.count -= 1
                self._on_change(self)
            case "gone", number:
                self.clients.pop(number, None)
            case "clients", reports:
                for report in reports:
                    self.clients[report.number] = RemoteClient(self.worker, report)
            case "stats", stats:
                self.stats = stats
            case "events", events:
                for event in events:
                    self._broadcaster.publish(event)

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        if lost.cancelled():  # the worker was stopped
            return
        logger.error("%s; %d connections are lost with it", lost.result(), self.count)
        for client in self.clients.values():
            publish_disconnect(self._broadcaster, client, lost.result())
        self._started, self.count, self.clients = False, 0, {}
        self.past = Stats.sum([self.past, self.stats])
        self.past.in_flight = 0
        self.stats = Stats()
        self._on_change(self)
