"""Worker service: serve clients in a worker process, and report to the parent.

The parent's calls are the coroutine methods of :class:`ClientService`. Its messages to the parent
arrive in order: ``clients`` (reports of new and changed clients), ``gone`` (a client's number),
``stats`` (summed counters), ``events``, and ``left``, once for each client that has disconnected.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple

from ...dispatch import Stats
from ...events import EventStream
from ...workers import Notify
from ..clients import LocalClients
from ..connection import ConnectionSettings, ServerConnection

REPORT_INTERVAL = 0.2
"""Seconds between reports of clients and events, while there are changes."""

MAX_REPORTS = 16
"""Limit of reports in one message, whose size is limited: one report may take 16 KiB, with a long
export name, and latencies of each magnitude for each command."""

MAX_EVENTS = 32
"""Limit of events in one message: one may take little more than 5 KiB, with a long export name."""


class ClientReport(NamedTuple):
    """Report a client to the parent."""

    number: int
    peer: str
    export: str | None
    stats: Stats


class ClientService:
    """Serve some of a server's clients in a worker process.

    Args:
        make_settings: makes what their connections share.
        notify: sends a message to the parent.

    """

    def __init__(self, make_settings: Callable[[], ConnectionSettings], notify: Notify) -> None:
        self._settings = make_settings()
        self._clients = LocalClients(self._settings, self._on_disconnect)
        self._notify = notify
        self._reported: dict[int, ClientReport] = {}
        self._events: EventStream | None = None
        self._disconnected = asyncio.Event()
        self._reporting = asyncio.create_task(self._report_regularly())

    async def listen(self) -> None:
        """Report events from now on; before, the parent has no subscriber."""
        self._events = self._clients.listen()

    async def accept(self, number: int, sock: socket.socket) -> None:
        """Serve the client that is connected to ``sock``."""
        sock.setblocking(False)
        self._clients.accept(sock, number)

    async def stop_client(self, number: int) -> None:
        """Disconnect one client gracefully. No-op: it has disconnected."""
        for connection in self._clients.connected():
            if connection.number == number:
                connection.stop()

    async def stop(self) -> None:
        """Begin a graceful shutdown: read no more requests; those in flight are answered."""
        self._clients.stop()

    async def count(self) -> int:
        """Return how many clients there are; a "left" was sent before for each other one."""
        return self._clients.count()

    async def cancel_handlers(self) -> None:
        """End the drain by force: cancel handlers that still run, close their connections."""
        self._clients.cancel_handlers()

    async def shutdown(self) -> None:
        """Drain the remaining clients within the drain timeout; the parent is gone or stops us."""
        self._reporting.cancel()
        self._clients.stop()
        drain_timer = asyncio.get_running_loop().call_later(
            self._settings.drain_timeout, self._clients.cancel_handlers
        )
        while self._clients.count():
            self._disconnected.clear()
            await self._disconnected.wait()
        drain_timer.cancel()
        self._settings.failures.close()
        self._settings.warnings.close()

    def _on_disconnect(self) -> None:
        self._disconnected.set()
        try:
            self._report()
        finally:
            # Also when the report fails: the parent waits for one for each client that it sent.
            self._notify("left")

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            self._report()

    def _report(self) -> None:
        connected = {each.number: each for each in self._clients.connected()}
        gone = self._reported.keys() - connected.keys()
        changed = [
            ClientReport(number, each.peer, each.export, each.stats.copy())
            for number, each in connected.items()
            if not _is_reported(self._reported.get(number), each)
        ]
        for number in gone:
            del self._reported[number]
            self._notify("gone", number)
        for first in range(0, len(changed), MAX_REPORTS):
            self._notify("clients", changed[first : first + MAX_REPORTS])
        self._reported |= {report.number: report for report in changed}
        if gone or changed:
            self._notify("stats", self._clients.stats())
        events = [] if self._events is None else self._events.drain()
        for first in range(0, len(events), MAX_EVENTS):
            self._notify("events", events[first : first + MAX_EVENTS])


def _is_reported(report: ClientReport | None, client: ServerConnection) -> bool:
    """Return whether a client is as it was reported last."""
    return report is not None and report[1:] == (client.peer, client.export, client.stats)
