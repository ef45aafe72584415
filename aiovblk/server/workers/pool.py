"""Clients that several processes serve: their parent's side."""

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
"""Seconds, beyond those that a flush may take, in which a worker has to answer its parent at the
end; then it hangs. And seconds until it is asked again."""


class RemoteClient:
    """Somebody who is served by a worker; what is known of it is some tenths of a second old."""

    def __init__(self, worker: Worker, report: ClientReport) -> None:
        self.number = report.number
        self.peer = report.peer
        self.export = report.export
        self.stats: Stats = report.stats
        self._worker = worker

    def __repr__(self) -> str:
        """Who uses what."""
        return f"<RemoteClient {self.peer} of {self.export!r}>"

    def stop(self) -> None:
        """Take no more requests of it; what is in flight is answered."""
        self._worker.call("stop_client", self.number)


class WorkerPool:
    """Processes that serve clients, each of which belongs to one of them.

    The parent accepts them all and gives each to the process that has the fewest. A process that
    is lost takes its clients with it, and is replaced.

    Args:
        workers: how many.
        make_settings: makes, in each of them, what its clients have in common.
        drain_timeout: seconds that a device's flush may take.
        on_left: called when clients have left.

    Attributes:
        broadcaster: who tells what happens to clients.

    """

    def __init__(
        self,
        workers: int,
        make_settings: Callable[[], ConnectionSettings],
        drain_timeout: float,
        on_left: Callable[[], None],
    ) -> None:
        patience = drain_timeout + WORKER_HANG_TIMEOUT
        self.broadcaster = EventBroadcaster()
        self._slots = [
            _WorkerSlot(make_settings, patience, self._on_change, self.broadcaster)
            for _ in range(workers)
        ]
        self._on_left = on_left
        self._stopped = False

    async def open(self) -> None:
        """Start the processes.

        Raises:
            TypeError: an export, or an option, cannot be handed to another process.
            WorkerLostError: one ended at once.

        """
        starting = [asyncio.ensure_future(member.start()) for member in self._slots]
        try:
            await asyncio.gather(*starting)
        finally:
            for each in starting:
                each.cancel()
            await asyncio.wait(starting)

    def count(self) -> int:
        """How many clients there are."""
        return sum(member.count for member in self._slots)

    def recheck(self) -> None:
        """Ask the processes how many clients they have; see :data:`aiovblk.aio.tasks.RECHECK_INTERVAL`."""
        for member in self._slots:
            member.recheck()

    def connected(self) -> list[RemoteClient]:
        """Who is connected now."""
        return [client for member in self._slots for client in member.clients.values()]

    def stats(self) -> Stats:
        """The counters of all there are and were, as far as they were reported."""
        return Stats.sum(stats for member in self._slots for stats in (member.past, member.stats))

    def listen(self) -> EventStream:
        """Hear what happens from now on; in the workers, from when they are told."""
        for member in self._slots:
            member.listen()
        return self.broadcaster.subscribe()

    def accept(self, sock: socket.socket, number: int) -> None:
        """Give whoever is at the other end to a worker."""
        with sock:
            alive = [member for member in self._slots if member.is_alive()]
            if alive:
                min(alive, key=lambda member: member.count).accept(sock, number)
            else:
                reason = "no worker is left to serve it"
                logger.warning("a client is turned away: %s", reason)
                self.broadcaster.publish(ClientRefused(number, address_of_peer(sock), reason))

    def stop(self) -> None:
        """Take no more requests; what is in flight is answered."""
        self._stopped = True
        for member in self._slots:
            member.stop()

    def cancel_handlers(self) -> None:
        """Give up what is in flight, and a worker that hangs."""
        for member in self._slots:
            member.cancel_handlers()

    async def close(self) -> list[str]:
        """End the processes; nothing is shared that would have to be closed."""
        # Not left off at the end of the loop, which cancels all tasks.
        closing = [GracefulTask(member.close(), lambda: None) for member in self._slots]
        for each in closing:
            await each
        return []

    def _on_change(self, member: _WorkerSlot) -> None:
        if not member.is_alive() and not self._stopped:
            member.replace()
        self._on_left()


class _WorkerSlot:
    """One place in a crew, and the process that has it at the time.

    Args:
        make_settings: makes, in the process, what its clients have in common.
        patience: seconds for the process to answer when it is to give up.
        on_change: called when clients have left.
        broadcaster: who tells what happens to clients.

    """

    def __init__(
        self,
        make_settings: Callable[[], ConnectionSettings],
        patience: float,
        on_change: Callable[[_WorkerSlot], None],
        feed: EventBroadcaster,
    ) -> None:
        self.count = 0
        self.clients: dict[int, RemoteClient] = {}
        self.stats = Stats()
        self.past = Stats()  # of the processes that had its place before
        self.worker = Worker(self._on_event)
        self._make_service = partial(ClientService, make_settings)
        self._patience = patience
        self._on_change = on_change
        self._feed = feed
        self._has_listeners = False
        self._started = False
        self._replacing: asyncio.Task[None] | None = None
        self._cancelling: GracefulTask[None] | None = None
        self._counting: asyncio.Future[int] | None = None

    def is_alive(self) -> bool:
        """Whether it can take clients."""
        return self._started

    async def start(self) -> None:
        """Start the process."""
        await self.worker.start(self._make_service)
        self._started = True
        self.worker.lost.add_done_callback(self._on_lost)
        if self._has_listeners:
            self.worker.call("listen")

    def listen(self) -> None:
        """Have the process tell what happens, and whichever takes its place."""
        if self._started and not self._has_listeners:
            self.worker.call("listen")
        self._has_listeners = True

    def replace(self) -> None:
        """Start another process in place of one that was lost."""
        self.worker = Worker(self._on_event)
        self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        try:
            await self.start()
        except Exception as exc:  # what loads the certificates may raise anything
            logger.error("no other process can take its place: %r", exc)

    def accept(self, sock: socket.socket, number: int) -> None:
        """Take a client."""
        refusal = partial(ClientRefused, number, address_of_peer(sock))
        try:
            accepting = self.worker.call("accept", number, sockets=(sock,))
        except OSError as exc:
            self._lose_client(refusal, exc)
            return
        self.count += 1
        accepting.add_done_callback(partial(self._on_accepted, refusal))

    def _lose_client(self, refusal: Callable[[str], ClientRefused], error: BaseException) -> None:
        logger.error("a client is lost: %s", error)
        self._feed.publish(refusal(format_error(error)))

    def _on_accepted(
        self, refusal: Callable[[str], ClientRefused], accepting: asyncio.Future[None]
    ) -> None:
        error = accepting.exception()
        # With the process all its clients are lost, and are not counted any more.
        if error is not None and not isinstance(error, WorkerLostError):
            self._lose_client(refusal, error)
            self.count -= 1
            self._on_change(self)

    def stop(self) -> None:
        """Take no more requests; what is in flight is answered."""
        if self._started:
            self.worker.call("stop")

    def recheck(self) -> None:
        """Ask the process how many clients it has."""
        if self._started and self.count and (self._counting is None or self._counting.done()):
            self._counting = self.worker.call("count")
            self._counting.add_done_callback(self._on_count)

    def _on_count(self, counting: asyncio.Future[int]) -> None:
        # While the server ends nobody is accepted, and what a worker tells comes in order: if fewer
        # are left than are known, then who left was not noticed.
        if not counting.exception() and counting.result() < self.count:
            self.count = counting.result()
            self._on_change(self)

    def cancel_handlers(self) -> None:
        """Give up what is in flight; and the process, should it hang."""
        if self._started and self._cancelling is None:
            # The end of the loop cannot cancel it, since the server's end waits for this one.
            self._cancelling = GracefulTask(self._cancel_handlers(), lambda: None)

    async def _cancel_handlers(self) -> None:
        # It has deadlines of its own for what it does at the end, which hold while it can answer.
        while self.count:
            answer = self.worker.call("cancel_handlers")
            await asyncio.wait([answer], timeout=self._patience)
            if not answer.done():
                logger.error("worker process %d hangs; it is killed", self.worker.pid)
                self.worker.kill()
                return
            await asyncio.sleep(WORKER_HANG_TIMEOUT)

    async def close(self) -> None:
        """End the process, or its replacement in the midst of its start."""
        if self._cancelling is not None:
            self._cancelling.force_cancel()
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
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
                    self._feed.publish(event)

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        if lost.cancelled():  # it was stopped
            return
        logger.error("%s, and with it %d connections are lost", lost.result(), self.count)
        for client in self.clients.values():
            publish_disconnect(self._feed, client, lost.result())
        self._started, self.count, self.clients = False, 0, {}
        self.past = Stats.sum([self.past, self.stats])
        self.past.in_flight = 0
        self.stats = Stats()
        self._on_change(self)
